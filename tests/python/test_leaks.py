"""Ten thousand calls leave the process as large as it was."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import clary
import numpy as np
import psutil
import pytest
import torch

CALLS = 10_000
MOST_BYTES = 1 << 20


def resident_bytes() -> int:
    """The resident set without what is free in it: memory that earlier tests freed would swallow a leak."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


def growth(call: Callable[[int], object]) -> int:
    """Bytes by which the resident set grows over CALLS calls, after enough to fill every cache."""
    for i in range(1000):
        call(i)
    before = resident_bytes()
    for i in range(CALLS):
        call(i)
    return resident_bytes() - before


def calls() -> dict[str, Callable[[int], object]]:
    x = np.ones((1, 2, 8, 16), np.float32)
    t = torch.from_numpy(x)
    mask = np.ones((8, 8), bool)
    long = np.ones((1, 2, 200, 16), np.float32)

    def refused(i: int) -> None:
        with pytest.raises(ValueError):
            clary.attention(x, x, x[:, :1])

    return {
        "numpy": lambda i: clary.attention(x, x, x, precision="int8"),
        "torch": lambda i: clary.attention(t, t, t, return_lse=True),
        "masks": lambda i: clary.attention(x, x, x, mask=mask),
        "lengths": lambda i: clary.attention(x, long[:, :, : i % 200 + 1], long[:, :, : i % 200 + 1]),
        "merge": lambda i: clary.merge([x, x], [x[..., 0].copy()] * 2),
        "errors": refused,
        "operator": lambda i: torch.ops.clary.attention(
            t, t, t, None, None, None, None, None, 0, 3, 0, 0, None, 0.0, -1, -1, None, 16, 1
        ),
    }


@pytest.mark.parametrize("name", ["numpy", "torch", "masks", "lengths", "merge", "errors", "operator"])
def test_memory_does_not_grow(name):
    assert growth(calls()[name]) <= MOST_BYTES


def test_a_leak_would_be_seen():
    """A planted fault: 4 KB a call are 40 MB."""
    kept = []
    assert growth(lambda i: kept.append(bytes([1]) * 4096)) > MOST_BYTES
