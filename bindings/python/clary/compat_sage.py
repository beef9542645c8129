"""Code written for SageAttention, without SageAttention: `import sageattention` gives Clary.

    clary.compat_sage.activate()        # before the import of what imports sageattention
    from sageattention import sageattn

The functions have the names, arguments and results of SageAttention 2.2, on CPU tensors, float32 too. Three things
differ. `attn_mask` is applied, where most of the originals take it and compute without it. An argument that is unknown
is an error. So is `is_causal` where queries and keys differ in number: the original does not say how they are aligned.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import torch

from . import _params, core
from ._params import Precision

__all__ = ["activate", "deactivate"]

_NAME = "sageattention"
_LAYOUTS: dict[str, _params.Layout] = {"HND": "bhsd", "NHD": "bshd"}
# Choices between kernels of the original. Clary has one way, within each of them: it smooths K and V, which is exact
# algebra, scales Q and K per token, and accumulates in 32 bits.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "quantization_backend": ("triton", "cuda"),
    "qk_quant_gran": ("per_warp", "per_thread"),
    "pv_accum_dtype": ("fp16", "fp16+fp32", "fp32", "fp32+fp16", "fp32+fp32"),
    "smooth_k": (False, True),
    "smooth_v": (False, True),
}

_ours: types.ModuleType | None = None
_before: types.ModuleType | None = None
_how: dict[str, Any] = {"precision": "int8", "guard": None}


def activate(precision: Precision = "int8", guard: float | None = None) -> None:
    """Puts a module into sys.modules["sageattention"]. Names imported from another one before stay what they are.

    diffusers looks for the metadata of the package too, which are not made up: use clary.diffusers.install() there.

    Args:
        precision, guard: as for clary.attention(). Those of the last call hold for all functions of the module.
    """
    global _ours, _before
    _params.options("bhsd", precision, False, None, 0.0, None, guard, 1)
    _how.update(precision=precision, guard=guard)
    if _ours is None or sys.modules.get(_NAME) is not _ours:
        _before = sys.modules.get(_NAME)
    _ours = types.ModuleType(_NAME, __doc__)
    # Without it importlib.util.find_spec("sageattention"), with which hosts look for it, raises.
    _ours.__spec__ = importlib.machinery.ModuleSpec(_NAME, None)
    for function in _FUNCTIONS:
        setattr(_ours, function.__name__, function)
    sys.modules[_NAME] = _ours


def deactivate() -> None:
    """Undoes activate(). When nothing was activated, or somebody replaced the module since, it stays."""
    global _ours, _before
    if _ours is not None and sys.modules.get(_NAME) is _ours:
        if _before is None:
            del sys.modules[_NAME]
        else:
            sys.modules[_NAME] = _before
    _ours = _before = None


def sageattn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    sm_scale: float | None = None,
    return_lse: bool = False,
    *,
    attn_mask: torch.Tensor | None = None,
    **choices: Any,
) -> Any:
    """softmax(sm_scale q k^T + mask) v.

    Args:
        q: [B, Hq, Lq, D] for tensor_layout "HND", [B, Lq, Hq, D] for "NHD"; k and v likewise with Hkv heads.
        is_causal: needs Lq = Lkv.
        sm_scale: None: 1 / sqrt(D).
        attn_mask: bool (True = attend) or float (added), broadcasts to [B, Hq, Lq, Lkv] in both layouts.
        choices: quantization_backend, qk_quant_gran, pv_accum_dtype, smooth_k, smooth_v: checked, and without effect.

    Returns: the shape of q; with return_lse (out, lse), lse float32 [B, Hq, Lq], natural logarithm.

    Raises: TypeError for an argument that is unknown, ValueError, clary.Error, as clary.attention().
    """
    return _dense("sageattn", q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask, choices)


def sageattn_qk_int8_pv_fp16_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensor_layout: str = "HND",
    quantization_backend: str = "triton",
    is_causal: bool = False,
    attn_mask: torch.Tensor | None = None,
    sm_scale: float | None = None,
    smooth_k: bool = True,
    return_lse: bool = False,
    **choices: Any,
) -> Any:
    """sageattn(), with the arguments in the order of the original."""
    choices.update(quantization_backend=quantization_backend, smooth_k=smooth_k)
    name = "sageattn_qk_int8_pv_fp16_triton"
    return _dense(name, q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask, choices)


def sageattn_qk_int8_pv_fp16_cuda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    qk_quant_gran: str = "per_thread",
    sm_scale: float | None = None,
    pv_accum_dtype: str = "fp32",
    smooth_k: bool = True,
    smooth_v: bool = False,
    return_lse: bool = False,
    *,
    attn_mask: torch.Tensor | None = None,
    **choices: Any,
) -> Any:
    """sageattn(), with the arguments in the order of the original."""
    choices.update(qk_quant_gran=qk_quant_gran, pv_accum_dtype=pv_accum_dtype, smooth_k=smooth_k, smooth_v=smooth_v)
    name = "sageattn_qk_int8_pv_fp16_cuda"
    return _dense(name, q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask, choices)


def sageattn_qk_int8_pv_fp8_cuda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    qk_quant_gran: str = "per_thread",
    sm_scale: float | None = None,
    pv_accum_dtype: str = "fp32+fp16",
    smooth_k: bool = True,
    smooth_v: bool = False,
    return_lse: bool = False,
    *,
    attn_mask: torch.Tensor | None = None,
    **choices: Any,
) -> Any:
    """sageattn(), with the arguments in the order of the original."""
    choices.update(qk_quant_gran=qk_quant_gran, pv_accum_dtype=pv_accum_dtype, smooth_k=smooth_k, smooth_v=smooth_v)
    name = "sageattn_qk_int8_pv_fp8_cuda"
    return _dense(name, q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask, choices)


def sageattn_qk_int8_pv_fp8_cuda_sm90(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    qk_quant_gran: str = "per_thread",
    sm_scale: float | None = None,
    pv_accum_dtype: str = "fp32+fp32",
    smooth_k: bool = True,
    return_lse: bool = False,
    *,
    attn_mask: torch.Tensor | None = None,
    **choices: Any,
) -> Any:
    """sageattn(), with the arguments in the order of the original."""
    choices.update(qk_quant_gran=qk_quant_gran, pv_accum_dtype=pv_accum_dtype, smooth_k=smooth_k)
    name = "sageattn_qk_int8_pv_fp8_cuda_sm90"
    return _dense(name, q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask, choices)


def _dense(
    name: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensor_layout: str,
    is_causal: bool,
    sm_scale: float | None,
    return_lse: bool,
    attn_mask: torch.Tensor | None,
    choices: dict[str, Any],
) -> Any:
    _check_choices(name, choices)
    layout = _LAYOUTS.get(tensor_layout)
    if layout is None:
        raise ValueError(f"tensor_layout: is {tensor_layout!r}, allowed are 'HND' and 'NHD'")
    if is_causal and q.shape[_LENGTH[layout]] != k.shape[_LENGTH[layout]]:
        raise _not_square(f"{q.shape[_LENGTH[layout]]} queries and {k.shape[_LENGTH[layout]]} keys")
    return core.attention(
        q,
        k,
        v,
        layout=layout,
        causal="top_left" if is_causal else False,
        scale=sm_scale,
        mask=attn_mask,
        return_lse=return_lse,
        **_how,
    )


_LENGTH: dict[str, int] = {"bhsd": 2, "bshd": 1}


def sageattn_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    is_causal: bool = False,
    sm_scale: float | None = None,
    smooth_k: bool = True,
    **unknown: Any,
) -> torch.Tensor:
    """Sequences one after the other.

    Args:
        q: [total, Hq, D]; k and v likewise with Hkv heads.
        cu_seqlens_q, cu_seqlens_k: int [n + 1], from 0 to the totals.
        max_seqlen_q, max_seqlen_k: at least the longest sequence.
        is_causal: needs the lengths of queries and keys to agree in every sequence.

    Returns: the shape of q. Raises: as sageattn().
    """
    if unknown:
        known = "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, is_causal, sm_scale, smooth_k"
        _params.reject_unknown("sageattn_varlen", unknown, known)
    _check_choices("sageattn_varlen", {"smooth_k": smooth_k})
    for name, ends, longest in (("q", cu_seqlens_q, max_seqlen_q), ("k", cu_seqlens_k, max_seqlen_k)):
        actual = int(ends.diff().max()) if ends.numel() > 1 else 0
        if longest < actual:
            raise ValueError(f"max_seqlen_{name}: is {longest}, but a sequence has {actual} tokens")
    if is_causal and not torch.equal(cu_seqlens_q, cu_seqlens_k):
        raise _not_square("sequences with another number of queries than keys")
    out: torch.Tensor = core.attention(
        q.unsqueeze(0),
        k.unsqueeze(0),
        v.unsqueeze(0),
        layout="bshd",
        causal="top_left" if is_causal else False,
        scale=sm_scale,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        **_how,
    )
    return out.squeeze(0)


def _check_choices(function: str, choices: dict[str, Any]) -> None:
    unknown = {name: value for name, value in choices.items() if name not in _CHOICES}
    if unknown:
        known = "q, k, v, tensor_layout, is_causal, sm_scale, return_lse, attn_mask, " + ", ".join(_CHOICES)
        _params.reject_unknown(function, unknown, known)
    for name, value in choices.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name}: is {value!r}, allowed are {', '.join(map(repr, _CHOICES[name]))}")


def _not_square(what: str) -> ValueError:
    return ValueError(
        f"is_causal: is defined for as many queries as keys, here are {what}; call clary.attention() with causal="
        "'bottom_right' (a cache of keys) or 'top_left'"
    )


_FUNCTIONS = (
    sageattn,
    sageattn_varlen,
    sageattn_qk_int8_pv_fp16_cuda,
    sageattn_qk_int8_pv_fp16_triton,
    sageattn_qk_int8_pv_fp8_cuda,
    sageattn_qk_int8_pv_fp8_cuda_sm90,
)
