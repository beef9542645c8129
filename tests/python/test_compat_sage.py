"""clary.compat_sage: SageAttention's names, with what it leaves out."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import clary
import clary.compat_sage
import numpy as np
import oracle
import pytest
import torch

# Of SageAttention 2.2.0, without annotations.
SIGNATURES = {
    "sageattn": "q, k, v, tensor_layout='HND', is_causal=False, sm_scale=None, return_lse=False",
    "sageattn_varlen": "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, is_causal=False, "
    "sm_scale=None, smooth_k=True",
    "sageattn_qk_int8_pv_fp16_triton": "q, k, v, tensor_layout='HND', quantization_backend='triton', "
    "is_causal=False, attn_mask=None, sm_scale=None, smooth_k=True, return_lse=False",
    "sageattn_qk_int8_pv_fp16_cuda": "q, k, v, tensor_layout='HND', is_causal=False, qk_quant_gran='per_thread', "
    "sm_scale=None, pv_accum_dtype='fp32', smooth_k=True, smooth_v=False, return_lse=False",
    "sageattn_qk_int8_pv_fp8_cuda": "q, k, v, tensor_layout='HND', is_causal=False, qk_quant_gran='per_thread', "
    "sm_scale=None, pv_accum_dtype='fp32+fp16', smooth_k=True, smooth_v=False, return_lse=False",
    "sageattn_qk_int8_pv_fp8_cuda_sm90": "q, k, v, tensor_layout='HND', is_causal=False, "
    "qk_quant_gran='per_thread', sm_scale=None, pv_accum_dtype='fp32+fp32', smooth_k=True, return_lse=False",
}
DENSE = [name for name in SIGNATURES if name != "sageattn_varlen"]


@pytest.fixture(autouse=True)
def active() -> Iterator[None]:
    clary.compat_sage.activate("exact")
    yield
    clary.compat_sage.deactivate()


def sage() -> Any:
    import sageattention

    return sageattention


def make(lq: int = 33, lk: int = 33, b: int = 2, hq: int = 4, hkv: int = 2, d: int = 24) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    shapes = (b, hq, lq, d), (b, hkv, lk, d), (b, hkv, lk, d)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float16) for shape in shapes)


def check(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs: Any) -> None:
    assert out.dtype == q.dtype
    assert oracle.errors(out, oracle.attention(q, k, v, **kwargs)[0]).l2 < 1e-3
    for name in kwargs:
        without = {other: value for other, value in kwargs.items() if other != name}
        assert oracle.errors(out, oracle.attention(q, k, v, **without)[0]).l2 > 1e-2


# ---- the module --------------------------------------------------------------------------------------------------


def test_signatures() -> None:
    for name, expected in SIGNATURES.items():
        parameters = inspect.signature(getattr(sage(), name)).parameters.values()
        positional = [p.replace(annotation=p.empty) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert ", ".join(map(str, positional)) == expected
    # ComfyUI looks for it before it hands over a mask.
    assert all("attn_mask" in inspect.signature(getattr(sage(), name)).parameters for name in DENSE)


def test_hosts_can_look_for_it() -> None:
    assert importlib.util.find_spec("sageattention") is not None
    clary.compat_sage.deactivate()
    assert importlib.util.find_spec("sageattention") is None
    with pytest.raises(ModuleNotFoundError):
        sage()


def test_the_real_one_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clary.compat_sage.deactivate()
    real = types.ModuleType("sageattention")
    monkeypatch.setitem(sys.modules, "sageattention", real)
    for _ in range(2):
        clary.compat_sage.activate()
        assert sage() is not real
    clary.compat_sage.deactivate()
    assert sage() is real
    clary.compat_sage.deactivate()
    assert sage() is real


def test_another_replacement_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("sageattention")
    monkeypatch.setitem(sys.modules, "sageattention", other)
    clary.compat_sage.deactivate()
    assert sage() is other


@pytest.mark.parametrize("arguments", [("int7",), ("int8", "much")], ids=str)
def test_wrong_options(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((ValueError, TypeError), match="precision|guard"):
        clary.compat_sage.activate(*arguments)


def test_precision() -> None:
    q, k, v = make(64, 300)
    clary.compat_sage.activate("int8")
    assert torch.equal(sage().sageattn(q, k, v), clary.attention(q, k, v, precision="int8"))
    clary.compat_sage.activate("int8", guard=1e-5)
    assert torch.equal(sage().sageattn(q, k, v), clary.attention(q, k, v, precision="exact"))


# ---- the functions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_dense(name: str, layout: str) -> None:
    q, k, v = make()
    inputs = (q, k, v) if layout == "HND" else (x.transpose(1, 2).contiguous() for x in (q, k, v))
    mask = torch.rand(2, 1, 33, 33) > 0.3
    arguments = {"is_causal": True, "sm_scale": 0.5, "attn_mask": mask, "return_lse": True, "smooth_k": False}
    out, lse = getattr(sage(), name)(*inputs, tensor_layout=layout, **arguments)
    out = out if layout == "HND" else out.transpose(1, 2)
    expected = {"causal": "top_left", "scale": 0.5, "mask": mask.numpy()}
    check(out, q, k, v, **expected)
    assert lse.shape == (2, 4, 33)
    np.testing.assert_allclose(lse, oracle.attention(q, k, v, **expected)[1], atol=1e-4)


def test_positional_arguments() -> None:
    q, k, v = make()
    expected = oracle.attention(q, k, v, causal="top_left", scale=0.5)[0]
    for out in (
        sage().sageattn(q, k, v, "HND", True, 0.5),
        sage().sageattn_qk_int8_pv_fp16_triton(q, k, v, "HND", "cuda", True, None, 0.5),
        sage().sageattn_qk_int8_pv_fp8_cuda(q, k, v, "HND", True, "per_warp", 0.5, "fp32+fp32", True, True),
    ):
        assert oracle.errors(out, expected).l2 < 1e-3


def test_additive_mask_of_a_head() -> None:
    q, k, v = make(lk=40)
    mask = torch.randn(4, 33, 40).half()
    check(sage().sageattn(q, k, v, attn_mask=mask), q, k, v, mask=mask.numpy())


@pytest.mark.parametrize("is_causal", [False, True])
def test_varlen(is_causal: bool) -> None:
    lengths = (5, 1, 27)
    ends = torch.tensor([0, 5, 6, 33])
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in make())
    out = sage().sageattn_varlen(q, k, v, ends, ends, 27, 27, is_causal, sm_scale=0.5)
    assert out.shape == q.shape
    for start, length in zip(ends.tolist(), lengths):
        part = [x[None, start : start + length].transpose(1, 2) for x in (q, k, v)]
        expected = oracle.attention(*part, causal="top_left" if is_causal else False, scale=0.5)[0]
        assert oracle.errors(out[None, start : start + length].transpose(1, 2), expected).l2 < 1e-3


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIGNATURES)
def test_unknown_arguments(name: str) -> None:
    q, k, v = make()
    rest = (torch.tensor([0, 33]), torch.tensor([0, 33]), 33, 33) if name == "sageattn_varlen" else ()
    with pytest.raises(TypeError, match=f"^dropout: is not an argument of {name}"):
        getattr(sage(), name)(q, k, v, *rest, dropout=0.5)


@pytest.mark.parametrize(
    "arguments",
    [{"tensor_layout": "NDH"}, {"smooth_k": None}, {"pv_accum_dtype": "fp8"}, {"quantization_backend": "cpu"}],
    ids=str,
)
def test_wrong_values(arguments: dict[str, Any]) -> None:
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"^{name}: is {value!r}, allowed are"):
        sage().sageattn(*make(), **arguments)


def test_causal_needs_as_many_queries_as_keys() -> None:
    q, k, v = make(lq=5)
    with pytest.raises(ValueError, match="is_causal: .*5 queries and 33 keys"):
        sage().sageattn(q, k, v, is_causal=True)
    q, k, v = (x[0].transpose(0, 1) for x in make(lq=5))
    ends = torch.tensor([0, 5]), torch.tensor([0, 33])
    with pytest.raises(ValueError, match="is_causal"):
        sage().sageattn_varlen(q, k, v, *ends, 5, 33, is_causal=True)
    with pytest.raises(ValueError, match="max_seqlen_k: is 32, but a sequence has 33"):
        sage().sageattn_varlen(q, k, v, *ends, 5, 32)


def test_gradients_are_refused() -> None:
    q, k, v = make()
    with pytest.raises(ValueError, match="^q: requires grad"):
        sage().sageattn(q.requires_grad_(), k, v)


def test_one_line_in_a_program() -> None:
    code = (
        "import clary.compat_sage; clary.compat_sage.activate()\n"
        "import torch\n"
        "from sageattention import sageattn\n"
        "x = torch.randn(1, 2, 64, 64, dtype=torch.bfloat16)\n"
        "print(*sageattn(x, x, x, is_causal=True).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1 2 64 64\n"
