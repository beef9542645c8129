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
            holds causality, window, padding and packing already. What says the same in other arguments applies without
            a mask only, aligned bottom-right.
        is_causal: None: module.is_causal, True where there is none.
        others: sliding_window, softcap, s_aux, position_bias, cu_seq_lens_q, cu_seq_lens_k, see _meaning(). The rest is
            what models pass to all implementations, as position_ids, and has no meaning for attention.

    Returns: [B, Lq, Hq, Dv], contiguous, and None for the weights.

    Raises: ValueError for what neither Clary nor transformers' sdpa computes. Dropout, gradients, other devices and
        dtypes are left to transformers' sdpa with a clary.torch.FallbackWarning.
    """
    meaning = _meaning(module, key.shape[2], attention_mask is not None, is_causal, others)
    bias = others.get("position_bias")
    mask = _with_bias(attention_mask, bias)
    if query.shape[0] == 1 != key.shape[0]:
        query = query.expand(key.shape[0], -1, -1, -1)
    reason = host.why_not(query, key, value, mask, dropout, False, True)
    if reason is not None:
        shifted = query.shape[2] not in (1, key.shape[2])
        _require_sdpa(reason, meaning, shifted, None if _SDPA_KNOWS_BIAS else bias)
        host.warn(reason)
        others.pop("softcap", None)  # sdpa raises for it, even for 0
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **others)
    q, k, v, mask = host.to_bshd(query, key, value, mask)
    if isinstance(scaling, torch.Tensor):
        scaling = scaling.item()
    out = core.attention(q, k, v, layout="bshd", scale=scaling, mask=mask, precision=precision, guard=guard, **meaning)
    return out, None


def _meaning(
    module: torch.nn.Module, lk: int, is_masked: bool, is_causal: bool | None, others: dict[str, Any]
) -> dict[str, Any]:
    """What transformers says, in the terms of clary.attention().

    others: sliding_window w: query i sees keys i - w + 1 to i + w - 1. softcap c: scores become c tanh(s / c).
        s_aux [Hq]: sinks. cu_seq_lens_q, cu_seq_lens_k int [n + 1]: ends of the sequences in a batch of one.
    """
    for name, why in _REFUSED.items():
        if others.get(name) is not None and others[name] is not False:
            raise ValueError(f"{name}: {why}")
    s_aux = others.get("s_aux")
    meaning = {"sinks": None if s_aux is None else s_aux.float()}
    if others.get("softcap"):
        meaning["softcap"] = others["softcap"]
    if is_masked:
        return meaning
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    window = others.get("sliding_window")
    return {
        **meaning,
        "causal": "bottom_right" if is_causal else False,
        "window": (window - 1, window - 1) if window and window < lk else None,
        "cu_seqlens_q": others.get("cu_seq_lens_q"),
        "cu_seqlens_k": others.get("cu_seq_lens_k"),
    }


def _with_bias(mask: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor | None:
    """position_bias, added to the scores, and the mask in one. Both broadcast to [B, Hq, Lq, Lk]."""
    if mask is None or bias is None:
        return bias if mask is None else mask
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


_NAMES = {
    "softcap": "softcap",
    "sinks": "s_aux",
    "window": "sliding_window",
    "cu_seqlens_q": "cu_seq_lens_q",
    "cu_seqlens_k": "cu_seq_lens_k",
}


def _require_sdpa(reason: str, meaning: dict[str, Any], shifted: bool, bias: torch.Tensor | None) -> None:
    """Raises when transformers' sdpa would pass over something in silence.

    shifted: whether it matters how queries and keys are aligned. bias: one that sdpa does not know.
    """
    names = [name for key, name in _NAMES.items() if meaning.get(key) is not None]
    names += ["is_causal with another number of queries than keys"] if shifted and meaning.get("causal") else []
    names += [] if bias is None else ["position_bias"]
    if names:
        raise ValueError(
            f"Clary does not serve the call ({reason}), and transformers' sdpa does not know {', '.join(names)}; call "
            "the model under torch.no_grad(), or use attn_implementation='eager'"
        )
