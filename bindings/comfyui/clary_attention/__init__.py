"""ComfyUI: attention by Clary, for the whole program under the name "clary", or for one model by a node.

ComfyUI calls f(q, k, v, heads, mask, ...) with q [B, L, H * D], or [B, H, L, D] with skip_reshape.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import clary.torch
import torch
from comfy.ldm.modules.attention import register_attention_function, wrap_attn

PRECISIONS = ("auto", "exact", "bf16x3", "bf16", "int8_f16", "int8", "int4")
# What ComfyUI hands to every function for its own bookkeeping.
_BOOKKEEPING = {"transformer_options", "_inside_attn_wrapper"}


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    mask: torch.Tensor | None = None,
    attn_precision: torch.dtype | None = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    low_precision_attention: bool = True,
    precision: Any = "auto",
    guard: float | None = None,
    **others: Any,
) -> torch.Tensor:
    """What ComfyUI's attention_pytorch computes.

    Args:
        q: [B, Lq, heads * D], or [B, heads, Lq, D] with skip_reshape; k and v likewise, with fewer heads under
            enable_gqa.
        mask: [Lq, Lk], [B, Lq, Lk] or [B, H, Lq, Lk], 1 where it broadcasts; bool (True = attend) or float (added).
        attn_precision: no effect, scores are never formed in 16 bits.
        low_precision_attention: False: the model is known to suffer, so precision is "exact".
        precision, guard: as for clary.attention().

    Returns: [B, Lq, heads * D], or [B, heads, Lq, D] with skip_output_reshape.

    Raises: TypeError for an argument that is unknown. What Clary does not serve goes to PyTorch with a warning.
    """
    unknown = others.keys() - _BOOKKEEPING
    if unknown:
        raise TypeError(f"{min(unknown)}: is not an argument of clary's attention function for ComfyUI")
    if not skip_reshape:
        dim = q.shape[-1] // heads
        q, k, v = (tensor.reshape(*tensor.shape[:2], -1, dim).transpose(1, 2) for tensor in (q, k, v))
    if mask is not None and mask.dim() == 3:
        mask = mask.unsqueeze(1)
    out = clary.torch.sdpa(
        q,
        k,
        v,
        mask,
        scale=scale,
        enable_gqa=enable_gqa,
        precision=precision if low_precision_attention else "exact",
        guard=guard if low_precision_attention else None,
    )
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def override(precision: str, guard: float | None) -> Callable[..., torch.Tensor]:
    """A function for transformer_options["optimized_attention_override"]: called with the function it replaces."""

    def replacement(function: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        unknown = kwargs.keys() - _KNOWN
        if not unknown:
            return attention(*args, **kwargs, precision=precision, guard=guard)
        message = f"left to ComfyUI's own attention: Clary does not know the argument {min(unknown)}"
        warnings.warn(message, clary.torch.FallbackWarning, stacklevel=2)
        return function(*args, **kwargs)

    return replacement


_KNOWN = inspect.signature(attention).parameters.keys() | _BOOKKEEPING


class ClaryAttention:
    """The node: a copy of the model whose attention is computed by Clary."""

    CATEGORY = "advanced/attention"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    DESCRIPTION = "Attention on the CPU in 8 bits. Text encoders and VAEs keep theirs."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        guard = {
            "default": 0.0,
            "min": 0.0,
            "max": 1.0,
            "step": 0.001,
            "tooltip": "Error budget per head; 0: by precision",
        }
        return {"required": {"model": ("MODEL",), "precision": (PRECISIONS,), "guard": ("FLOAT", guard)}}

    def patch(self, model: Any, precision: str, guard: float) -> tuple[Any]:
        """A clone of `model`. An override that is there already is replaced, as by every node of this kind."""
        patched = model.clone()
        options = patched.model_options.setdefault("transformer_options", {})
        options["optimized_attention_override"] = override(precision, guard or None)
        return (patched,)


register_attention_function("clary", wrap_attn(attention))

NODE_CLASS_MAPPINGS = {"ClaryAttention": ClaryAttention}
NODE_DISPLAY_NAME_MAPPINGS = {"ClaryAttention": "Clary attention"}
