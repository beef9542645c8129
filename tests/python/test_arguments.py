"""Every wrong argument is an exception that names it, what it was and what is allowed; nothing is ignored."""

from __future__ import annotations

import inspect

import clary
import numpy as np
import pytest
import torch
from conftest import qkv

REFUSED = {
    "unknown": ({"atn_mask": None}, TypeError, r"atn_mask: is not an argument of attention\(\); those are "),
    "layout": ({"layout": "hnd"}, ValueError, "layout: is 'hnd', allowed are 'bhsd', 'bshd'"),
    "layout type": ({"layout": 0}, ValueError, "layout: is 0"),
    "causal True": ({"causal": True}, ValueError, "causal: is True, .*'top_left', 'bottom_right'"),
    "causal numpy True": ({"causal": np.True_}, TypeError, "causal: is "),
    "causal float": ({"causal": 1.0}, TypeError, "causal: is 1.0; allowed are"),
    "causal name": ({"causal": "left"}, ValueError, "causal: is 'left'"),
    "causal huge": ({"causal": 1 << 70}, ValueError, "causal: is .*, must fit into 64 bits"),
    "scale infinite": ({"scale": float("inf")}, ValueError, "softmax_scale: is inf"),
    "scale NaN": ({"scale": float("nan")}, ValueError, "scale: is NaN"),
    "scale name": ({"scale": "1"}, TypeError, "scale: is '1', must be a number"),
    "scale array": ({"scale": np.ones(())}, TypeError, "scale: is array.*, must be a number"),
    "scale tensor": ({"scale": torch.ones(())}, TypeError, "scale: is tensor.*, must be a number"),
    "scale flag": ({"scale": True}, TypeError, "scale: is True"),
    "window one": ({"window": 5}, TypeError, r"window: is 5, must be a pair \(left, right\)"),
    "window three": ({"window": (1, 2, 3)}, TypeError, "window: is"),
    "window negative": ({"window": (-2, 0)}, ValueError, "window_left: is -2, allowed are -1"),
    "window float": ({"window": (1.5, 0)}, TypeError, "window: is 1.5, must be an int"),
    "softcap": ({"softcap": -1}, ValueError, "softcap: is -1"),
    "softcap NaN": ({"softcap": np.nan}, ValueError, "softcap: is NaN"),
    "softcap None": ({"softcap": None}, TypeError, "softcap: is None, must be a number"),
    "precision": ({"precision": "int9"}, ValueError, "precision: is 'int9', allowed are 'exact', 'bf16'"),
    "guard": ({"guard": 0}, ValueError, "guard: is 0"),
    "guard_rows": ({"guard_rows": 65}, ValueError, "guard_rows: is 65, allowed are 1 to 64"),
    "guard_rows huge": ({"guard_rows": 1 << 40}, ValueError, "guard_rows: is .*, must fit into 32 bits"),
    "threads zero": ({"threads": 0}, ValueError, "threads: is 0, allowed are 1 to"),
    "threads negative": ({"threads": -3}, ValueError, "threads: is -3"),
    "threads float": ({"threads": 1.5}, TypeError, "threads: is 1.5, must be an int"),
    "threads many": ({"threads": 1 << 20}, ValueError, "threads: is 1048576, allowed are 1 to"),
    "mask shape": ({"mask": np.ones((37, 52), bool)}, ValueError, "mask: dimension Lk is 52, allowed are 1 and 53"),
    "mask batch": ({"mask": np.ones((3, 1, 1, 53), bool)}, ValueError, "mask: dimension B is 3"),
    "mask 5-D": ({"mask": np.ones((1, 1, 1, 1, 53), bool)}, ValueError, "mask: has 5 dimensions"),
    "mask integers": ({"mask": np.ones((37, 53), np.int32)}, ValueError, "mask: integer masks are not served"),
    "mask float64": ({"mask": np.ones((37, 53))}, TypeError, "mask: dtype .* is not served"),
    "mask list": ({"mask": [[True]]}, TypeError, "mask: is a list"),
    "mask tensor": ({"mask": torch.ones(37, 53)}, TypeError, "mask: is a PyTorch tensor, must be a NumPy array like q"),
    "mask transposed": ({"mask": np.ones((53, 37), bool).T}, ValueError, "mask: stride of the last dimension is"),
    "slopes": ({"alibi_slopes": np.ones(3, np.float32)}, ValueError, "alibi_slopes: has 3 entries per batch"),
    "sinks": ({"sinks": np.ones(4)}, TypeError, "sinks: dtype"),
    "sinks 2-D": ({"sinks": np.ones((2, 4), np.float32)}, ValueError, "sinks: has 2 dimensions"),
    "lengths alone": ({"cu_seqlens_q": [0, 37]}, ValueError, "cu_seqlens_k: is NULL"),
    "lengths float": ({"cu_seqlens_q": [0.0, 37.0], "cu_seqlens_k": [0, 53]}, TypeError, "cu_seqlens_q: is float64"),
    "lengths empty": ({"cu_seqlens_q": [], "cu_seqlens_k": [0, 53]}, TypeError, "cu_seqlens_q: is"),
    "lengths differ": ({"cu_seqlens_q": [0, 1, 37], "cu_seqlens_k": [0, 53]}, ValueError, "cu_seqlens_k: has 2"),
    "lengths huge": ({"cu_seqlens_q": [0, 1 << 40], "cu_seqlens_k": [0, 53]}, ValueError, "must fit into 31 bits"),
    "lengths of a batch": ({"cu_seqlens_q": [0, 37], "cu_seqlens_k": [0, 53]}, ValueError, "batch size 1, not 2"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_arguments(what, rng):
    arguments, kind, words = REFUSED[what]
    with pytest.raises(kind, match=words):
        clary.attention(*qkv(rng), **arguments)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"hq": 3}, "q: number of heads is 3, must be a multiple of that of k, 2"),
        ({"d": 1025}, "q: head dim is 1025, allowed are 1 to 1024"),
        ({"dv": 0}, "v: head dim is 0"),
        ({"d": 0}, "q: head dim is 0"),
        ({"hkv": 0}, "k: number of heads is 0"),
    ],
)
def test_wrong_sizes(sizes, words, rng):
    with pytest.raises(ValueError, match=words):
        clary.attention(*qkv(rng, **sizes))


def test_sizes_that_do_not_fit(rng):
    q, k, v = qkv(rng)
    for arrays, words in (
        ((q[:1], k, v), "k: batch size is 2, must be that of q, 1"),
        ((q, k[..., :8], v), "k: head dim is 8, must be that of q, 24"),
        ((q, k, v[:, :, :9]), "v: length is 9, must be that of k, 53"),
        ((q, k, v[:, :1]), "v: number of heads is 1"),
    ):
        with pytest.raises(ValueError, match=words):
            clary.attention(*arrays)
    with pytest.raises(ValueError, match="k: is f16, must be of the type of q, f32"):
        clary.attention(q, k.astype(np.float16), v)


def test_values_that_only_look_wrong_are_served(rng):
    arrays = qkv(rng)
    plain = clary.attention(*arrays)
    for arguments in (
        {"scale": np.float32(24**-0.5)}, {"softcap": 0}, {"window": [-1, -1]}, {"window": (np.int64(-1), 1 << 62)},
        {"causal": None}, {"causal": np.int64(1 << 40)}, {"threads": np.int32(2)}, {"guard_rows": np.uint8(16)},
    ):  # fmt: skip
        assert np.allclose(clary.attention(*arrays, **arguments), plain, atol=1e-6), arguments


def test_every_argument_of_attention_reaches_plan():
    attention, plan = (list(inspect.signature(f).parameters) for f in (clary.attention, clary.plan))
    assert [name for name in attention if name != "downcast"] == plan
    named = [name for name in attention if name not in ("q", "k", "v", "unknown")]
    with pytest.raises(TypeError) as error:
        clary.attention(np.ones(1), np.ones(1), np.ones(1), no_such=1)
    assert str(error.value).split("those are ")[1].split(", ") == named
