"""diffusers: `model.set_attention_backend("clary")`.

    clary.diffusers.install()
    pipe.transformer.set_attention_backend("clary:int8")

Serves the models whose processors go through diffusers' attention dispatch: Flux, Wan, Qwen-Image and most that came
after them. set_attention_backend() passes over the others in silence, UNets and the first DiTs among them: those call
scaled_dot_product_attention, which clary.torch.use() diverts.
"""

from __future__ import annotations

import functools
from typing import Any, get_args

import torch

from . import core
from . import torch as host
from ._params import Precision

__all__ = ["attention", "install"]


def install(guard: float | None = None) -> None:
    """Makes the backends "clary" (precision "auto") and "clary:<precision>" known to diffusers. May be called again.

    They are listed as able to do context parallelism: ring and Ulysses attention merge their results by the LSE.

    Args:
        guard: budget for the relative L2 error of each head, as for clary.attention().

    Raises: RuntimeError when diffusers has no dispatch that can be extended; clary.torch.use() works with any version.
    """
    names: dict[str, Precision] = {
        "clary": "auto",
        **{f"clary:{precision}": precision for precision in get_args(Precision)},
    }
    try:
        from diffusers.models import attention_dispatch as dispatch

        for name, precision in names.items():
            function = functools.partial(attention, precision=precision, guard=guard)
            checks: list[Any] = [dispatch._check_device, dispatch._check_shape, dispatch._check_attn_mask_or_causal]
            register = dispatch._AttentionBackendRegistry.register
            register(_member(dispatch.AttentionBackendName, name), checks, supports_context_parallel=True)(function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        import diffusers

        raise RuntimeError(
            f"diffusers {diffusers.__version__}: its list of attention backends, which is private, is not the known "
            f"one ({error}); use clary.torch.use() around the pipeline"
        ) from error


def _member(names: Any, value: str) -> Any:
    """The member of the enumeration with that value. It is closed to others, but every use of it looks there."""
    if value in names._value2member_map_:
        return names._value2member_map_[value]
    member = str.__new__(names, value)
    member._name_, member._value_ = value.upper().replace(":", "_"), value
    names._member_map_[member._name_] = names._value2member_map_[value] = member
    names._member_names_.append(member._name_)
    if names(value) is not member or value not in {known.value for known in names.__members__.values()}:
        raise TypeError(f"{names.__name__} cannot be extended")
    return member


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _parallel_config: Any = None,
    *,
    precision: Precision = "auto",
    guard: float | None = None,
) -> Any:
    """What diffusers' dispatch asks for.

    Args:
        query, key, value: [B, L, H, D].
        attn_mask: bool (True = attend) or float (added): [B, Lk], [Lq, Lk] where that is not the same, [B, Lq, Lk], or
            what broadcasts to [B, H, Lq, Lk].
        is_causal: top-left aligned.
        return_lse: return (out, lse), lse float32 [B, Lq, H], natural logarithm.

    Returns: [B, Lq, H, Dv], contiguous.

    Raises: ValueError; NotImplementedError from backward() after context parallelism. Dropout, gradients, other devices
        and dtypes are left to PyTorch with a clary.torch.FallbackWarning.
    """
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unsqueeze(1)
    elif attn_mask is not None and attn_mask.shape == (query.shape[0], key.shape[1]):
        attn_mask = attn_mask[:, None, None]
    compute = functools.partial(_compute, precision=precision, guard=guard)
    if _parallel_config is None:
        return compute(None, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse)
    if attn_mask is not None and _parallel_config.context_parallel_config.ring_degree > 1:
        raise ValueError("attn_mask: ring attention would apply it to the keys of every rank alike; use Ulysses")
    from diffusers.models.attention_dispatch import _templated_context_parallel_attention

    return _templated_context_parallel_attention(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        return_lse,
        forward_op=compute,
        backward_op=_backward,
        _parallel_config=_parallel_config,
    )


def _compute(
    _context: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    return_lse: bool,
    _save_ctx: bool = False,
    _parallel_config: Any = None,
    *,
    precision: Precision,
    guard: float | None,
) -> Any:
    """attention() of what one process holds."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if not return_lse:
        out = host.sdpa(
            q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa, precision=precision, guard=guard
        )
        return out.transpose(1, 2).contiguous()
    reason = host.why_not(q, k, v, mask, dropout_p, is_causal, enable_gqa)
    if reason is not None:
        raise ValueError(f"return_lse: Clary does not serve the call ({reason}), and PyTorch returns no LSE")
    q, k, v, mask = host.to_bshd(q, k, v, mask)
    out, lse = core.attention(
        q,
        k,
        v,
        layout="bshd",
        causal="top_left" if is_causal else False,
        scale=scale,
        mask=mask,
        precision=precision,
        guard=guard,
        return_lse=True,
    )
    return out, lse.transpose(1, 2)


def _backward(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("Clary computes the forward pass only; call the model under torch.no_grad()")
