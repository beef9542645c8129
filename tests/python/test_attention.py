"""clary.attention against float64, for NumPy arrays and PyTorch tensors, with every argument."""

from __future__ import annotations

import clary
import ml_dtypes
import numpy as np
import oracle
import pytest
import torch
from conftest import qkv

# Relative L2 on normal inputs: the bounds of docs/semantics.md; f16 and bf16 results are rounded once more.
BOUNDS = {"exact": 2e-6, "bf16x3": 1e-5, "bf16": 4.5e-3, "int8_f16": 1.3e-2, "int8": 2e-2, "int4": 0.12, "auto": 2e-2}
DTYPES = {"float32": (np.float32, torch.float32, 0), "float16": (np.float16, torch.float16, 6e-4)}
DTYPES["bfloat16"] = (ml_dtypes.bfloat16, torch.bfloat16, 4e-3)

CASES = {
    "plain": {},
    "scale": {"scale": 0.3},
    "scale zero": {"scale": 0},
    "top left": {"causal": "top_left"},
    "bottom right": {"causal": "bottom_right"},
    "offset": {"causal": -5},
    "offset zero is a value": {"causal": 0},
    "window": {"window": (9, 4)},
    "open window": {"window": (-1, 3), "causal": "bottom_right"},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0625], np.float32)},
    "alibi per batch": {"alibi_slopes": np.arange(8, dtype=np.float32).reshape(2, 4) / 16},
    "sinks": {"sinks": np.array([0.5, -1, 2, 0], np.float32)},
    "bool mask": {"mask": np.random.default_rng(2).random((2, 4, 37, 53)) < 0.6},
    "key mask": {"mask": np.random.default_rng(3).random((2, 1, 1, 53)) < 0.6},
    "2-D mask": {"mask": np.random.default_rng(4).random((37, 53)) < 0.6},
    "additive mask": {"mask": np.random.default_rng(5).standard_normal((1, 4, 37, 53)).astype(np.float32)},
    "hidden rows": {"mask": np.arange(37)[:, None] % 3 != np.zeros(53, int)},
}
CASES["everything"] = {
    "causal": 4, "scale": 0.2, "window": (30, -1), "softcap": 3.0, "mask": CASES["bool mask"]["mask"],
    "alibi_slopes": CASES["alibi"]["alibi_slopes"], "sinks": CASES["sinks"]["sinks"],
}  # fmt: skip


def to_torch(value: object) -> object:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("case", CASES)
def test_every_argument(case, precision, rng):
    arrays, arguments = qkv(rng), CASES[case]
    expected, expected_lse = oracle.attention(*arrays, **arguments)
    out, lse = clary.attention(*arrays, **arguments, precision=precision, return_lse=True)
    assert type(out) is type(lse) is np.ndarray
    assert oracle.errors(out, expected).l2 <= BOUNDS[precision]
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(expected_lse))
    seen = ~np.isneginf(expected_lse)
    assert np.abs(lse[seen] - expected_lse[seen]).max() <= ({"exact": 1e-5, "bf16x3": 1e-4}.get(precision, 0.3))
    assert not out[~seen].any(), "a row that sees nothing is 0"

    tensors = [torch.from_numpy(x) for x in arrays]
    again = clary.attention(*tensors, **{k: to_torch(x) for k, x in arguments.items()}, precision=precision)
    assert type(again) is torch.Tensor
    np.testing.assert_array_equal(again.numpy(), out)


def test_the_oracle_sees_a_lost_argument(rng):
    """A planted fault: leaving an argument out must break the bounds above."""
    arrays = qkv(rng)
    plain = clary.attention(*arrays, precision="exact")
    for case, arguments in CASES.items():
        if case in ("plain", "open window"):
            continue
        assert oracle.errors(plain, oracle.attention(*arrays, **arguments)[0]).l2 > 1e-3, case


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_and_layouts(dtype, layout, rng):
    np_dtype, torch_dtype, rounding = DTYPES[dtype]
    arrays = [x.astype(np_dtype) for x in qkv(rng)]
    expected, expected_lse = oracle.attention(*arrays)
    given = [x.swapaxes(1, 2).copy() if layout == "bshd" else x for x in arrays]
    out, lse = clary.attention(*given, layout=layout, precision="exact", return_lse=True)
    assert out.dtype == np_dtype and lse.dtype == np.float32 and lse.shape == (2, 4, 37)
    assert oracle.errors(out.swapaxes(1, 2) if layout == "bshd" else out, expected).l2 <= 2e-6 + rounding
    assert np.abs(lse - expected_lse).max() < 1e-5

    tensors = [torch.from_numpy(oracle.double(x)).to(torch_dtype) for x in given]
    again = clary.attention(*tensors, layout=layout, precision="exact")
    assert again.dtype == torch_dtype and again.is_contiguous()
    np.testing.assert_array_equal(oracle.double(again), oracle.double(out))


def test_varlen(rng):
    ends_q, ends_k = [0, 5, 5, 30], [0, 9, 20, 41]
    q, k, v = qkv(rng, b=1, lq=30, lk=41)
    for library in (np.asarray, torch.from_numpy):
        tensors = [library(x) for x in (q, k, v)]
        for lengths in (list, np.array, torch.tensor):
            out = clary.attention(
                *tensors,
                cu_seqlens_q=lengths(ends_q),
                cu_seqlens_k=lengths(ends_k),
                causal="bottom_right",
                precision="exact",
            )
            for q0, q1, k0, k1 in zip(ends_q, ends_q[1:], ends_k, ends_k[1:]):
                part = q[:, :, q0:q1], k[:, :, k0:k1], v[:, :, k0:k1]
                expected = oracle.attention(*part, causal="bottom_right")[0]
                assert np.allclose(oracle.double(out)[:, :, q0:q1], expected, atol=1e-5)


def test_guard_raises_the_precision(rng):
    arrays = qkv(rng, lq=64, lk=256, d=64, dv=64)
    expected = oracle.attention(*arrays)[0]
    loose = clary.attention(*arrays, precision="int4")
    tight = clary.attention(*arrays, precision="int4", guard=1e-3)
    assert oracle.errors(loose, expected).l2 > 0.03 > 1e-3 >= oracle.errors(tight, expected).l2
    plan = clary.plan(*arrays, precision="int4", guard=1e-3)
    plan.run(*arrays)
    assert plan.head(0, 0).precision == "exact" and plan.head(0, 0).raises == 3 and plan.head(0, 0).first_error > 0.03


def test_the_same_bits_for_any_number_of_threads(rng):
    arrays = qkv(rng, lq=300, lk=700)
    for precision in BOUNDS:
        one = clary.attention(*arrays, precision=precision, threads=1)
        np.testing.assert_array_equal(one, clary.attention(*arrays, precision=precision, threads=3))


def test_empty_inputs(rng):
    q, k, v = qkv(rng)
    for zero_q, zero_k in ((q[:0], k[:0]), (q[:, :, :0], k), (q[:, :0], k)):
        out, lse = clary.attention(zero_q, zero_k, v[: len(zero_k)], return_lse=True)
        assert out.shape == (*zero_q.shape[:3], 16) and lse.shape == zero_q.shape[:3]
    out, lse = clary.attention(q, k[:, :, :0], v[:, :, :0], return_lse=True)
    assert not out.any() and np.isneginf(lse).all()


def test_non_finite_values(rng):
    q, k, v = qkv(rng)
    mask = np.ones((37, 53), bool)
    mask[:, 7] = False
    expected = oracle.attention(q, k, v, mask=mask)[0]
    for bad in (np.nan, np.inf, -np.inf):
        spoiled_k, spoiled_v = k.copy(), v.copy()
        spoiled_k[:, :, 7], spoiled_v[:, :, 7] = bad, bad
        hidden = clary.attention(q, spoiled_k, spoiled_v, mask=mask, precision="int8")
        assert oracle.errors(hidden, expected).l2 <= BOUNDS["int8"]
        seen = clary.attention(q, k, spoiled_v, precision="int8", causal="top_left")
        assert np.isfinite(seen[:, :, :7]).all() and not np.isfinite(seen[:, :, 7:]).any()


def test_downcast(rng):
    arrays = [x.astype(np.float64) for x in qkv(rng)]
    expected, expected_lse = oracle.attention(*arrays)
    mask = np.zeros((37, 53))  # float64, too
    for library in (np.asarray, torch.from_numpy):
        given = [library(x) for x in arrays]
        out, lse = clary.attention(*given, mask=library(mask), downcast=True, precision="exact", return_lse=True)
        assert "float64" in str(out.dtype) and "float32" in str(lse.dtype) and type(out) is type(given[0])
        assert oracle.errors(out, expected).l2 <= 2e-6 and np.abs(oracle.double(lse) - expected_lse).max() < 1e-5
        half = [library(x.astype(np.float32)) for x in arrays]
        assert "float32" in str(clary.attention(*half, downcast=True).dtype)
