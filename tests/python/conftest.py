"""What every test has: quiet hosts, and inputs that are a function of their seed."""

from __future__ import annotations

import os

# Nothing is fetched: models come from packages or are made up.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def qkv(
    rng: np.random.Generator,
    b: int = 2,
    hq: int = 4,
    hkv: int = 2,
    lq: int = 37,
    lk: int = 53,
    d: int = 24,
    dv: int = 16,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal float32 arrays [B, H, L, D]."""
    shapes = ((b, hq, lq, d), (b, hkv, lk, d), (b, hkv, lk, dv))
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)  # type: ignore[return-value]
