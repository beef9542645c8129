"""PyTorch: `clary.attention` as an operator, and diverting `F.scaled_dot_product_attention` to it.

    with clary.torch.use(precision="int8"):
        model(x)                        # every scaled_dot_product_attention inside, on CPU tensors, is Clary's

Eager calls on plain tensors go straight to the library. Under torch.compile, export, fake tensors, dispatch modes and
function transforms they go through the operators `clary::attention` and `clary::attention_lse`, which are opaque and
have a fake form.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from . import _arrays, _context, _gpu, core
from ._params import LAYOUTS, PRECISIONS, Options, Precision
from .core import Extras

__all__ = ["FallbackWarning", "Stats", "last_plan", "reset_stats", "sdpa", "stats", "use"]

_TENSORS = (
    "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? alibi_slopes, Tensor? sinks, Tensor? cu_seqlens_q, "
    "Tensor? cu_seqlens_k"
)
_OPTIONS = (
    "int layout, int precision, int causal, int causal_offset, float? scale, float softcap, int window_left, "
    "int window_right, float? guard, int guard_rows, int? threads"
)


class FallbackWarning(UserWarning):
    """A call of scaled_dot_product_attention was left to PyTorch. Given once for each reason."""


# ---- the operators -----------------------------------------------------------------------------------------------


def run(q: Any, k: Any, v: Any, options: Options, extras: Extras, return_lse: bool, threads: int | None) -> Any:
    """What clary.attention() does with tensors."""
    if torch.is_grad_enabled():
        _refuse_gradients((("q", q), ("k", k), ("v", v)))
        if extras is not core.NO_EXTRAS:
            _refuse_gradients(extras.tensors().items())
    if not _is_traced((q, k, v) if extras is core.NO_EXTRAS else (q, k, v, *extras.tensors().values())):
        return _compute(q, k, v, options, extras, return_lse, threads)
    tensors = (q, k, v, extras.mask, extras.alibi_slopes, extras.sinks)
    lengths = (_as_tensor(extras.cu_seqlens_q), _as_tensor(extras.cu_seqlens_k))
    operator = torch.ops.clary.attention_lse if return_lse else torch.ops.clary.attention
    return operator(*tensors, *lengths, *options, threads)


def _refuse_gradients(tensors: Iterable[tuple[str, Any]]) -> None:
    for name, tensor in tensors:
        if getattr(tensor, "requires_grad", False):
            raise ValueError(
                f"{name}: requires grad, but Clary computes the forward pass only; call it under torch.no_grad() or "
                f"torch.inference_mode(), or pass {name}.detach()"
            )


def _is_traced(arrays: tuple[Any, ...]) -> bool:
    """Whether somebody records or transforms what happens, or one of them is a tensor that may have no memory."""
    return (
        torch.compiler.is_compiling()
        or not _KNOWN.issuperset(map(type, arrays))
        and any(type(array) not in _PLAIN and isinstance(array, torch.Tensor) for array in arrays)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


LIBRARY = _arrays.Torch()
_PLAIN = {torch.Tensor, torch.nn.Parameter}
_KNOWN = _PLAIN | {type(None)}


def _as_tensor(lengths: Any) -> torch.Tensor | None:
    return None if lengths is None else torch.as_tensor(lengths)


def _compute(q: Any, k: Any, v: Any, options: Options, extras: Extras, return_lse: bool, threads: int | None) -> Any:
    if q.is_cpu:
        result, _here.last = core.run(LIBRARY, q, k, v, options, extras, return_lse, threads)
    elif q.is_cuda:
        result = _gpu.attention(q, k, v, options, extras, return_lse, threads)
    else:
        raise TypeError(f"q: is on device {q.device}, served are cpu and cuda")
    _stats.taken()
    return result


def _kernel(return_lse: bool) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        q, k, v, mask, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k, *options, threads = arguments
        extras = Extras(mask, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k)
        return _compute(q, k, v, Options(*options), extras if extras.any() else core.NO_EXTRAS, return_lse, threads)

    return kernel


def _fake(return_lse: bool) -> Callable[..., Any]:
    def fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> Any:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        if not return_lse:
            return out
        heads, rows = (1, 2) if LAYOUTS[rest[5]] == "bhsd" else (2, 1)
        return out, q.new_empty((q.shape[0], q.shape[heads], q.shape[rows]), dtype=torch.float32)

    return fake


def _no_vmap(name: str) -> Callable[..., Any]:
    def rule(*_: Any) -> Any:
        raise NotImplementedError(
            f"clary::{name} has no batching rule for torch.vmap: attention takes a batch dimension, so fold the mapped "
            "dimension into that one"
        )

    return rule


def _register() -> Any:
    library: Any = torch.library.Library("clary", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch types none of it
    for name, result, return_lse in (("attention", "Tensor", False), ("attention_lse", "(Tensor, Tensor)", True)):
        library.define(f"{name}({_TENSORS}, {_OPTIONS}) -> {result}", tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, _kernel(return_lse), "CPU")
        library.impl(name, _kernel(return_lse), "CUDA")
        torch.library.register_fake(f"clary::{name}", _fake(return_lse), lib=library)
        if hasattr(torch.library, "register_vmap"):  # PyTorch 2.5
            torch.library.register_vmap(f"clary::{name}", _no_vmap(name), lib=library)
    return library


# ---- what happened -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stats:
    """Calls since the start or reset_stats(). fallbacks: how often each reason left a call to PyTorch."""

    taken: int
    fallbacks: dict[str, int]


class _Counts:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._taken = 0
            self._fallbacks: Counter[str] = Counter()

    def taken(self) -> None:
        with self._lock:
            self._taken += 1

    def left(self, reason: str) -> bool:
        """Whether it is the first of its reason."""
        with self._lock:
            self._fallbacks[reason] += 1
            return self._fallbacks[reason] == 1

    def read(self) -> Stats:
        with self._lock:
            return Stats(self._taken, dict(self._fallbacks))


class _Here(threading.local):
    last: _context.Plan | None = None
    sdpa: Callable[..., torch.Tensor]


_stats, _here = _Counts(), _Here()


def stats() -> Stats:
    """How many calls on tensors Clary computed, and how many it left to PyTorch, by reason. Of the whole process."""
    return _stats.read()


def reset_stats() -> None:
    _stats.clear()


def last_plan() -> str | None:
    """The plan of this thread's last call on tensors, in words; None before the first."""
    return None if _here.last is None else core.describe(_here.last)


# ---- scaled_dot_product_attention ------------------------------------------------------------------------------------


def sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    precision: Precision = "auto",
    guard: float | None = None,
    strict: bool = False,
) -> torch.Tensor:
    """torch.nn.functional.scaled_dot_product_attention, computed by Clary where it can be.

    Args: those of PyTorch's function, with its semantics: `is_causal` is top-left aligned, a boolean mask is True where
        it attends, a float one is added. A row that may attend to nothing gets 0. Then, by keyword:
        precision, guard: as for clary.attention().
        strict: raise where Clary cannot serve the call, instead of leaving it to PyTorch with a FallbackWarning.

    Returns: [..., Lq, Dv], in memory as [B, Lq, H, Dv], like PyTorch's own on the CPU.

    Raises: what PyTorch's function raises; under strict ValueError with the reason.
    """
    reason = why_not(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    if reason is not None:
        if strict:
            raise ValueError(f"clary.torch.sdpa: {reason}")
        warn(reason)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    q, k, v, mask = to_bshd(query, key, value, attn_mask)
    out: torch.Tensor = core.attention(
        q,
        k,
        v,
        layout="bshd",
        causal="top_left" if is_causal else False,
        scale=scale,
        mask=mask,
        precision=precision,
        guard=guard,
    )
    out = out.transpose(1, 2)
    return out if query.dim() == 4 else out.reshape(*query.shape[:-1], value.shape[-1])


def warn(reason: str) -> None:
    if torch.compiler.is_compiling():  # the fallback is in the graph for good; there is nobody to warn at run time
        return
    if _stats.left(reason):
        warnings.warn(f"left to PyTorch: {reason}", FallbackWarning, stacklevel=3)


def why_not(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    enable_gqa: bool,
) -> str | None:
    """Why Clary does not serve the call; None when it does. What PyTorch refuses is left to it, too."""
    if dropout_p > 0:
        return "dropout_p > 0: there is no dropout"
    grad = torch.is_grad_enabled()
    for tensor in (query, key, value) if attn_mask is None else (query, key, value, attn_mask):
        if not isinstance(tensor, torch.Tensor):
            return "an argument is no tensor"
        if grad and tensor.requires_grad:
            return "an input requires grad: Clary computes the forward pass only"
        if tensor.layout is not torch.strided or tensor.is_nested:
            return "an input is nested or sparse"
        if tensor.device != query.device or not (
            tensor.is_cpu or tensor.is_cuda and _gpu.is_served(tensor.device.index)
        ):
            return f"an input is on device {tensor.device.type}"
    if query.dtype not in _SERVED:
        return f"the dtype is {query.dtype}"
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        return f"the mask's dtype is {attn_mask.dtype}"
    if not query.dtype == key.dtype == value.dtype or (is_causal and attn_mask is not None):
        return "the arguments do not fit together"
    return _why_not_shapes(query.shape, key.shape, value.shape, attn_mask, enable_gqa, 1024 if query.is_cpu else 256)


_SERVED = {torch.float32, torch.float16, torch.bfloat16}


def _why_not_shapes(
    query: torch.Size,
    key: torch.Size,
    value: torch.Size,
    attn_mask: torch.Tensor | None,
    enable_gqa: bool,
    most_dim: int,
) -> str | None:
    dims = len(query)
    if not (2 <= dims <= 4 and dims == len(key) == len(value)):
        return f"the inputs have {dims}, {len(key)} and {len(value)} dimensions, not two to four each"
    if not (1 <= query[-1] <= most_dim and 1 <= value[-1] <= most_dim):
        return f"a head dim is not within 1 to {most_dim}"
    if query[-1] != key[-1] or key[-2] != value[-2]:
        return "head dims or lengths do not fit together"
    if attn_mask is not None and attn_mask.dim() > dims:
        return "the mask has more dimensions than the query"
    if query[:-2] == key[:-2] == value[:-2]:
        return None
    for sizes in (key, value):
        if dims > 2 and sizes[0] not in (1, query[0]):
            return "batch sizes do not fit together"
        grouped = enable_gqa and sizes[-3] > 0 and query[-3] % sizes[-3] == 0
        if dims == 4 and sizes[1] not in (1, query[1]) and not grouped:
            return "numbers of heads do not fit together"
    return None


def to_bshd(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """[B, L, H, D] views of two to four dimensions, batch sizes and numbers of key-value heads made equal."""
    if query.dim() < 4:  # [L, D] and [B, L, D] have one head
        if mask is not None and query.dim() == mask.dim() == 3:
            mask = mask.unsqueeze(1)
        query, key, value = (x.unsqueeze(1) if x.dim() == 3 else x[None, None] for x in (query, key, value))
    if query.shape[0] != key.shape[0] or key.shape[:2] != value.shape[:2]:
        heads = max(key.shape[1], value.shape[1])
        key, value = (x.expand(query.shape[0], heads, -1, -1) for x in (key, value))
    if mask is not None and mask.dim() > 0 and mask.stride(-1) not in (0, 1):
        mask = mask.contiguous()
    return _bshd(query), _bshd(key), _bshd(value), mask


def _bshd(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.stride(3) != 1 and tensor.shape[3] != 1:
        tensor = tensor.contiguous()
    return tensor.transpose(1, 2)


def _with_sdpa_of_this_thread(forward: Any) -> Any:
    """A copy of a function of torch.nn.functional that calls `_here.sdpa` for scaled_dot_product_attention.

    PyTorch runs `forward` with function modes switched off, so what it calls would not come by them.
    """
    names = {**forward.__globals__, "scaled_dot_product_attention": lambda *args, **kwargs: _here.sdpa(*args, **kwargs)}
    return types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__)


_multi_head_attention_forward = _with_sdpa_of_this_thread(F.multi_head_attention_forward)


class use(TorchFunctionMode):
    """Diverts every F.scaled_dot_product_attention inside a `with` block to sdpa(), also where it was imported by name.

    Of this thread only; restored on exit and on exceptions. nn.MultiheadAttention leaves its C++ fast path while a
    block is open, so its attention comes by here, too. Arguments: those of sdpa() that follow PyTorch's.
    """

    def __init__(self, precision: Precision = "auto", guard: float | None = None, strict: bool = False) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision: is {precision!r}, allowed are {', '.join(map(repr, PRECISIONS))}")
        self._sdpa = functools.partial(sdpa, precision=precision, guard=guard, strict=strict)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            func = self._sdpa
        elif func is F.multi_head_attention_forward:
            _here.sdpa = self._sdpa
            func = _multi_head_attention_forward
        return func(*args, **(kwargs or {}))


_OPERATORS = _register()
core.runners[LIBRARY] = run
# Known before the first call: under torch.compile that one cannot find out.
_arrays._libraries.update(dict.fromkeys(_PLAIN, LIBRARY))
