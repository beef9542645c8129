"""Random calls against float64 in PyTorch, and laws that hold for any call."""

from __future__ import annotations

import clary
import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis import given, settings

BOUNDS = {"exact": 2e-6, "bf16x3": 2e-5, "bf16": 6e-3, "int8_f16": 1.6e-2, "int8": 2.5e-2, "auto": 2.5e-2}
DTYPES = {torch.float32: 0.0, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@st.composite
def calls(draw):
    b, hkv, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    lq, lk = draw(st.integers(1, 70)), draw(st.integers(1, 300))
    # Head dims of a few give scores so large that rounding decides which key wins.
    d, dv = draw(st.integers(8, 72)), draw(st.integers(1, 72))
    dtype = draw(st.sampled_from(list(DTYPES)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    shapes = ((b, hkv * group, lq, d), (b, hkv, lk, d), (b, hkv, lk, dv))
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    kind = draw(st.sampled_from(["none", "bool", "float", "causal"]))
    mask = None
    if kind == "bool":
        mask = torch.rand(lq, lk, generator=generator) < draw(st.sampled_from([0.05, 0.5, 0.95]))
    elif kind == "float":
        mask = torch.randn(b, 1, lq, lk, generator=generator)
    offset = draw(st.integers(-lq, lk)) if kind == "causal" else None
    return tensors, mask, offset, draw(st.sampled_from(list(BOUNDS)))


def float64(tensors, mask, offset):
    q, k, v = (x.double() for x in tensors)
    if offset is not None:
        mask = torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + offset
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.double()
    out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    if mask is not None and mask.dtype == torch.bool:  # rows that see nothing: 0
        out = out.masked_fill(~mask.any(-1)[:, None], 0)
    return out


@settings(max_examples=150, deadline=None)
@given(calls())
def test_against_float64(call):
    tensors, mask, offset, precision = call
    causal = False if offset is None else offset
    out = clary.attention(*tensors, mask=mask, causal=causal, precision=precision)
    expected = float64(tensors, mask, offset)
    error = (out.double() - expected).norm() / max(expected.norm(), 1e-30)
    # A handful of numbers is no sample: the bounds are of the whole, so small outputs get twice of it.
    slack = 1 if expected.numel() > 2000 else 2 if expected.numel() > 200 else 4
    assert error <= slack * BOUNDS[precision] + DTYPES[tensors[0].dtype]


@settings(max_examples=40, deadline=None)
@given(calls())
def test_batch_entries_do_not_know_of_each_other(call):
    tensors, mask, offset, _ = call
    causal = False if offset is None else offset
    out = clary.attention(*tensors, mask=mask, causal=causal, precision="exact")
    for i in range(tensors[0].shape[0]):
        part = None if mask is None else mask[i : i + 1] if mask.dim() == 4 else mask
        alone = clary.attention(*(x[i : i + 1] for x in tensors), mask=part, causal=causal, precision="exact")
        assert torch.equal(alone[0], out[i])


@settings(max_examples=40, deadline=None)
@given(calls(), st.integers(1, 299))
def test_merging_parts_is_attention_over_all(call, cut):
    (q, k, v), _, _, _ = call
    cut = min(cut, k.shape[2])
    whole, whole_lse = clary.attention(q.float(), k.float(), v.float(), precision="exact", return_lse=True)
    parts = [
        clary.attention(q.float(), k[:, :, s].float(), v[:, :, s].float(), precision="exact", return_lse=True)
        for s in (slice(0, cut), slice(cut, None))
    ]
    out, lse = clary.merge([p[0] for p in parts], [p[1] for p in parts])
    torch.testing.assert_close(out, whole, atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(lse, whole_lse, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(calls(), st.floats(-2, 2))
def test_values_act_linearly_and_shifts_of_keys_do_not_matter(call, factor):
    (q, k, v), mask, offset, _ = call
    causal = False if offset is None else offset
    q, k, v = q.float(), k.float(), v.float()
    out = clary.attention(q, k, v, mask=mask, causal=causal, precision="exact")
    scaled = clary.attention(q, k, v * factor, mask=mask, causal=causal, precision="exact")
    torch.testing.assert_close(scaled, out * factor, atol=1e-5, rtol=1e-4)
    shifted = clary.attention(q, k + 0.5, v, mask=mask, causal=causal, precision="exact")
    torch.testing.assert_close(shifted, out, atol=3e-5, rtol=1e-3)
