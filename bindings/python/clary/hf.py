"""transformers: `attn_implementation="clary"`.

    clary.hf.register()
    model = AutoModel.from_pretrained(name, attn_implementation="clary:int8")

Serves every model that goes through transformers' AttentionInterface. Masks are those that transformers makes for
sdpa, with one difference: none is left out where queries and keys differ in number. So "no mask" has one meaning here:
the last query stands at the last key. sdpa reads it as top-left, for the sake of empty static caches, which would be
wrong for a model that drops leading queries.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, get_args

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from . import core
from . import torch as host
from ._params import Precision

__all__ = ["attention_forward", "make_mask", "register"]

# What some models hand over in place of a mask that says the same. Without it the result would be another one.
_REFUSED = {
    "indices": "the sparse attention of this model reaches only 'eager', 'sdpa' and its own kernels",
    "block_indices": "the sparse attention of this model reaches only 'eager', 'sdpa' and its own kernels",
    "sinks": "sinks that differ from query to query are not served",
    "output_attentions": "attention weights are never formed",
}


_SDPA_KNOWS_BIAS = "position_bias" in inspect.signature(sdpa_attention_forward).parameters


def register(guard: float | None = None) -> None:
    """Makes the names "clary" (precision "auto") and "clary:<precision>" known to transformers. May be called again.

    Args:
        guard: budget for the relative L2 error of each head, as for clary.attention().
    """
    names: dict[str, Precision] = {
        "clary": "auto",
        **{f"clary:{precision}": precision for precision in get_args(Precision)},
    }
    for name, precision in names.items():
        AttentionInterface.register(name, functools.partial(attention_forward, precision=precision, guard=guard))
        # Without it transformers hands over no mask at all, and says nothing.
        AttentionMaskInterface.register(name, make_mask)


def make_mask(**arguments: Any) -> torch.Tensor | None:
    """A boolean mask [B, 1, Lq, Lk], True = attend; None when there is nothing to hide but what causality does.

    Args: those that transformers gives to every function of its AttentionMaskInterface.

    Raises: ValueError for a model whose code does not go through the AttentionInterface: it would misread the mask.
    """
    if not torch.compiler.is_compiling():
        _require_interface(arguments.get("config"))
    lq, lk = _lengths(arguments)
    if lq not in (1, lk):
        arguments["allow_is_causal_skip"] = False
    mask: torch.Tensor | None = sdpa_mask(**arguments)
    return mask


def _lengths(arguments: dict[str, Any]) -> tuple[int, int]:
    lq = arguments.get("q_length")
    if lq is None:  # transformers 4 and 5.0
        lq = arguments["cache_position"].shape[0]
    return lq, arguments["kv_length"]


def _require_interface(config: Any) -> None:
    models = () if config is None else _models_of(type(config))
    if models and not any(model._can_set_attn_implementation() for model in models):
        raise ValueError(
            f"attn_implementation: is {config._attn_implementation!r}, but {models[0].__name__} computes attention by "
            "itself; use 'eager' or 'sdpa', with clary.torch.use() where it calls scaled_dot_product_attention"
        )


def _models_of(config: type) -> tuple[type[PreTrainedModel], ...]:
    """The classes of models with that class of configuration that are loaded."""
    found, todo = [], [PreTrainedModel]
    while todo:
        model = todo.pop()
        todo += model.__subclasses__()
        if getattr(model, "config_class", None) is config:
            found.append(model)
    return tuple(found)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    *,
    precision: Precision = "auto",
    guard: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' AttentionInterface asks for.

    Args:
        query: [B, Hq, Lq, Dk]. B may be 1 where keys have more.
        key, value: [B, Hkv, Lk, D], heads of a group not repeated.
        attention_mask: broadcasts to [B, Hq, Lq, Lk], bool (True = attend) or float (added). It is the whole truth: it
            holds the window, causality and padding already, so `sliding_window`, `is_causal` and `cu_seq_lens` apply
            without a mask only, aligned bottom-right.
        is_causal: None: module.is_causal, True where there is none.
        sliding_window: w: query i sees keys i - w + 1 to i + w - 1.
        softcap: scores become c tanh(s / c).
        s_aux: [Hq], sinks.
        position_bias: broadcasts to [B, Hq, Lq, Lk], added to the scores.
        cu_seq_lens_q, cu_seq_lens_k: int [n + 1], ends of the sequences in a batch of one without padding.
        others: what models pass to all implementations, as position_ids; no meaning for attention.

    Returns: [B, Lq, Hq, Dv], contiguous, and None for the weights.

    Raises: ValueError for what neither Clary nor transformers' sdpa computes. Dropout, gradients, other devices and
        dtypes are left to transformers' sdpa with a clary.torch.FallbackWarning.
    """
    for name, why in _REFUSED.items():
        if others.get(name) is not None and others[name] is not False:
            raise ValueError(f"{name}: {why}")
    causal, window = False, None
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if sliding_window and sliding_window < key.shape[2]:
            window = (sliding_window - 1, sliding_window - 1)
    else:
        cu_seq_lens_q = cu_seq_lens_k = None
    mask = _with_bias(attention_mask, position_bias)
    if query.shape[0] == 1 != key.shape[0]:
        query = query.expand(key.shape[0], -1, -1, -1)
    reason = host._why_not(query, key, value, mask, dropout, False, True)
    if reason is not None:
        shifted = causal and query.shape[2] not in (1, key.shape[2])
        _require_sdpa(
            reason,
            softcap=softcap,
            s_aux=s_aux,
            sliding_window=window,
            is_causal="bottom-right" if shifted else None,
            cu_seq_lens_q=cu_seq_lens_q,
            cu_seq_lens_k=cu_seq_lens_k,
            position_bias=None if _SDPA_KNOWS_BIAS else position_bias,
        )
        host._warn(reason)
        arguments = {"position_bias": position_bias, **others}
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **arguments
        )
    q, k, v, mask = host._to_bshd(query, key, value, mask)
    out = core.attention(
        q,
        k,
        v,
        layout="bshd",
        causal="bottom_right" if causal else False,
        scale=scaling.item() if isinstance(scaling, torch.Tensor) else scaling,
        mask=mask,
        window=window,
        softcap=softcap or 0.0,
        sinks=None if s_aux is None else s_aux.float(),
        precision=precision,
        guard=guard,
        cu_seqlens_q=cu_seq_lens_q,
        cu_seqlens_k=cu_seq_lens_k,
    )
    return out, None


def _with_bias(mask: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor | None:
    if mask is None or bias is None:
        return bias if mask is None else mask
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _require_sdpa(reason: str, **arguments: Any) -> None:
    """Raises when transformers' sdpa would pass over one of the arguments in silence."""
    names = [name for name, value in arguments.items() if value is not None]
    if names:
        raise ValueError(
            f"Clary does not serve the call ({reason}), and transformers' sdpa does not know {', '.join(names)}; call "
            "the model under torch.no_grad(), or use attn_implementation='eager'"
        )
