"""attention, plan, merge, info: the library for arrays of any kind."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from . import _arrays, _context, _lib, _params
from ._arrays import F32, F64, Library
from ._params import Causal, Layout, Options, Precision

_KNOWN = (
    "layout, causal, scale, mask, window, softcap, alibi_slopes, sinks, precision, return_lse, guard, guard_rows, "
    "threads, cu_seqlens_q, cu_seqlens_k, downcast"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Extras:
    """Tensors beside q, k and v. A plan points to them, so it is made for one call when there are any."""

    mask: Any = None
    alibi_slopes: Any = None
    sinks: Any = None
    cu_seqlens_q: Any = None
    cu_seqlens_k: Any = None

    def tensors(self) -> dict[str, Any]:
        return {"mask": self.mask, "alibi_slopes": self.alibi_slopes, "sinks": self.sinks}

    def any(self) -> bool:
        return any(getattr(self, field.name) is not None for field in dataclasses.fields(self))


NO_EXTRAS = Extras()


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    layout: Layout = "bhsd",
    causal: Causal = False,
    scale: float | None = None,
    mask: Any = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    sinks: Any = None,
    precision: Precision = "auto",
    return_lse: bool = False,
    guard: float | None = None,
    guard_rows: int = 16,
    threads: int | None = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    downcast: bool = False,
    **unknown: NoReturn,
) -> Any:
    """softmax(scale q k^T + ...) v for every batch and head, in 4, 8, 16 or 32 bits.

    Letters: B batch, Hq / Hkv heads, Lq / Lk lengths, Dk / Dv head dims. All rules: docs/semantics.md.

    Args:
        q: [B, Hq, Lq, Dk] for layout "bhsd", [B, Lq, Hq, Dk] for "bshd". float32, float16 or bfloat16; any strides, the
            last one 1. A NumPy array, a PyTorch tensor, or anything on the CPU with `__dlpack__` or the buffer
            protocol.
        k: [B, Hkv, Lk, Dk]. Hq is a multiple of Hkv: query head h reads head h // (Hq // Hkv).
        v: [B, Hkv, Lk, Dv].
        causal: False; "top_left": query i sees keys j <= i; "bottom_right": j <= i + Lk - Lq; an int n: j <= i + n.
        scale: factor of q.k. None: 1 / sqrt(Dk).
        mask: bool (True = attend) or float (added to the scores, -inf hides), broadcast to [B, Hq, Lq, Lk] as in NumPy.
        window: (left, right): query i, aligned with key a, sees keys a - left to a + right; -1 = open.
        softcap: c > 0: scores become c tanh(s / c).
        alibi_slopes: float32 [Hq] or [B, Hq]: scores -= slope |i + offset - j|.
        sinks: float32 [Hq]: a logit that joins each row's denominator.
        precision: "exact" (f32 arithmetic), "bf16x3" (f32 as the sum of two bf16), "bf16", "int8_f16", "int8", "int4"
            (SageAttention2, arXiv 2411.10958) or "auto".
        return_lse: return (out, lse), lse float32 [B, Hq, Lq], natural logarithm.
        guard: budget for the relative L2 error of each head, measured on `guard_rows` rows (1 to 64) while the call
            runs; heads over it are computed again with more bits.
        threads: None: torch.get_num_threads() when torch is loaded, else the cores this process may use.
        cu_seqlens_q, cu_seqlens_k: varlen batches: ints, from 0, ascending, ending at the total lengths; B is 1 then.
        downcast: compute float64 inputs in f32 (the result is float64 again). Otherwise they are an error.

    Returns: [B, Hq, Lq, Dv] (or the bshd form) in the library, type and dtype of q. Rows that see no key are 0, their
        lse is -inf.

    Raises: ValueError, TypeError naming the argument, what it was and what is allowed; clary.Error.
    """
    if unknown:
        _params.reject_unknown("attention", unknown, _KNOWN)
    library = _arrays.library_of("q", q)
    options = _params.options(layout, precision, causal, scale, softcap, window, guard, guard_rows)
    extras = NO_EXTRAS
    if (
        mask is not None
        or alibi_slopes is not None
        or sinks is not None
        or cu_seqlens_q is not None
        or cu_seqlens_k is not None
    ):
        extras = Extras(mask, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k)
    if downcast:
        return _downcast(library, q, k, v, options, extras, return_lse, threads)
    runner = runners.get(library)
    if runner is not None:
        return runner(q, k, v, options, extras, return_lse, threads)
    return run(library, q, k, v, options, extras, return_lse, threads)[0]


# What libraries do around run(); they put themselves in here.
runners: dict[Library, Callable[..., Any]] = {}


def run(
    library: Library, q: Any, k: Any, v: Any, options: Options, extras: Extras, return_lse: bool, threads: int | None
) -> tuple[Any, _context.Plan]:
    """What attention() returns, and the plan that computed it."""
    _arrays.require(library, "k", k)
    _arrays.require(library, "v", v)
    q_data, q_key, q_owner = library.look("q", q)
    k_data, k_key, k_owner = library.look("k", k)
    v_data, v_key, v_owner = library.look("v", v)
    slot = _context.take(threads)
    try:
        key = (q_key, k_key, v_key, options, return_lse)
        plan = None if extras is not NO_EXTRAS else slot.find(key)
        if plan is None:
            plan = make_plan(slot.context, library, (q_key, k_key, v_key), options, extras, return_lse)
            if extras is NO_EXTRAS:
                slot.remember(key, plan)
        result = _execute(library, plan, q_key[2], q, (q_data, k_data, v_data))
    finally:
        _context.give_back(threads, slot)
    del q_owner, k_owner, v_owner
    return result, plan


def _execute(
    library: Library, plan: _context.Plan, dtype: _arrays.DType, like: Any, inputs: tuple[int, int, int]
) -> Any:
    """Runs a plan on addresses; out, or (out, lse), in the library and type of `like`."""
    out, out_data = library.empty(plan.out_shape, dtype, like)
    lse, lse_data = library.empty(plan.lse_shape, F32, like) if plan.lse_shape is not None else (None, None)
    _lib.check(_lib.lib.clary_plan_run(plan.handle, *inputs, out_data, lse_data))
    out = library.result(out, like)
    return out if lse is None else (out, library.result(lse, like))


def make_plan(
    context: _context.Context,
    library: Library,
    keys: Sequence[_arrays.Key],
    options: Options,
    extras: Extras,
    return_lse: bool,
) -> _context.Plan:
    """Checks the whole call. Raises as attention() does."""
    for name, key in zip("qkv", keys):
        if key[2] == F64:
            raise TypeError(
                f"{name}: is float64; pass downcast=True to compute in float32, or float32, float16, bfloat16"
            )
    q, k, v = (_arrays.tensor(None, key[0], library.strides(key), key[2]) for key in keys)
    q_shape, v_shape = keys[0][0], keys[2][0]
    out_shape = (*q_shape[:-1], v_shape[-1]) if len(q_shape) == len(v_shape) == 4 else q_shape
    out = _arrays.tensor(None, out_shape, None, keys[0][2])
    lse = None
    if return_lse and len(q_shape) == 4:
        b, h, rows = q_shape[0], *(q_shape[1:3] if options.layout == 0 else (q_shape[2], q_shape[1]))
        lse = _arrays.tensor(None, (b, h, rows), None, F32)
    params = options.params()
    kept = _attach(params, library, extras)
    return _context.Plan(context, q, k, v, out, lse, params, kept)


def _attach(params: _lib.AttentionParams, library: Library, extras: Extras) -> tuple[Any, ...]:
    """Points the parameters to the tensors of `extras`; returns what must live as long as they do."""
    if extras is NO_EXTRAS:
        return ()
    kept: list[Any] = []
    for name, array in extras.tensors().items():
        if array is None:
            continue
        _arrays.require(library, name, array)
        data, key, owner = library.look(name, array)
        view = _arrays.tensor(data, key[0], library.strides(key), key[2])
        setattr(params, name, ctypes.pointer(view))
        kept += [view, owner]
    lengths = {}
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        if getattr(extras, name) is not None:
            lengths[name] = ends = cu_seqlens(name, getattr(extras, name))
            setattr(params, name, ends.ctypes.data)
            params.num_sequences = len(ends) - 1
            kept.append(ends)
    if len({len(ends) for ends in lengths.values()}) > 1:
        raise ValueError(f"cu_seqlens_k: has {len(lengths['cu_seqlens_k'])} entries, must have as many as cu_seqlens_q")
    return tuple(kept)


def cu_seqlens(name: str, value: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
    ends = np.asarray(value)
    if ends.ndim != 1 or ends.size == 0 or ends.dtype.kind not in "iu":
        raise TypeError(f"{name}: is {ends.dtype} of shape {ends.shape}, must be a vector of at least one integer")
    if ends.size and not 0 <= int(ends.min()) <= int(ends.max()) < 1 << 31:
        raise ValueError(f"{name}: has entries from {ends.min()} to {ends.max()}, must fit into 31 bits")
    return np.ascontiguousarray(ends, np.int32)


def _downcast(
    library: Library, q: Any, k: Any, v: Any, options: Options, extras: Extras, return_lse: bool, threads: int | None
) -> Any:
    """attention() of float64 inputs, computed in f32."""

    def lower(name: str, array: Any) -> Any:
        if array is None:
            return None
        _arrays.require(library, name, array)
        return library.astype(array, F32) if library.look(name, array)[1][2] == F64 else array

    was_double = library.look("q", q)[1][2] == F64
    q, k, v = lower("q", q), lower("k", k), lower("v", v)
    if extras is not NO_EXTRAS:
        extras = dataclasses.replace(extras, **{name: lower(name, array) for name, array in extras.tensors().items()})
    lowered = _arrays.library_of("q", q)
    result, _ = run(lowered, q, k, v, options, extras, return_lse, threads)
    if not was_double:
        return result
    return (library.astype(result[0], F64), result[1]) if return_lse else library.astype(result, F64)


@dataclasses.dataclass(frozen=True, slots=True)
class PlanInfo:
    """Numbers about a plan. A tile is 16 query rows x 256 keys of one query head; flops count visible tiles."""

    isa: str
    precision: str
    start: str
    tiles_skipped: int
    tiles_full: int
    tiles_partial: int
    flops: float
    bytes_moved: float
    bytes_lower_bound: float
    workspace_bytes: int
    work_items: int
    key_splits: int


@dataclasses.dataclass(frozen=True, slots=True)
class HeadInfo:
    """What the guard, or "auto", did to one head in the last run. first_error NaN: not measured."""

    precision: str
    raises: int
    first_error: float
    last_error: float


class Plan:
    """A call that was checked once and can be run often, and looked into. Made by clary.plan()."""

    def __init__(self, plan: _context.Plan, library: Library, keys: tuple[_arrays.Key, ...]) -> None:
        self._plan, self._library, self._keys = plan, library, keys

    def run(self, q: Any, k: Any, v: Any) -> Any:
        """attention() of arrays with the shapes, strides and dtypes of those that the plan was made with."""
        if not self._plan.context.belongs_to_this_process():
            raise _lib.Error("plan: was made before this process was forked, its threads stayed behind; make it again")
        looks = []
        for name, array, key in zip("qkv", (q, k, v), self._keys):
            _arrays.require(self._library, name, array)
            looks.append(self._library.look(name, array))
            if looks[-1][1] != key:
                raise ValueError(
                    f"{name}: {_describe_key(looks[-1][1])} is not what the plan was made for, {_describe_key(key)}"
                )
        addresses = (looks[0][0], looks[1][0], looks[2][0])
        return _execute(self._library, self._plan, self._keys[0][2], q, addresses)

    def describe(self) -> str:
        """The plan in words: kernel and why, tiles, FLOPs, bytes, memory, and which heads the guard moved."""
        return describe(self._plan)

    @property
    def info(self) -> PlanInfo:
        info = _lib.PlanInfo(size=ctypes.sizeof(_lib.PlanInfo))
        _lib.check(_lib.lib.clary_plan_get_info(self._plan.handle, ctypes.byref(info)))
        names = {field.name: getattr(info, field.name) for field in dataclasses.fields(PlanInfo)}
        names["isa"] = _lib.text(info.isa)
        names["precision"], names["start"] = _params.PRECISIONS[info.precision], _params.PRECISIONS[info.start]
        names["workspace_bytes"] = int(info.workspace_bytes)
        return PlanInfo(**names)

    def head(self, batch: int, head: int) -> HeadInfo:
        """Raises: ValueError for indices out of range."""
        info = _lib.HeadInfo(size=ctypes.sizeof(_lib.HeadInfo))
        _lib.check(_lib.lib.clary_plan_get_head(self._plan.handle, batch, head, ctypes.byref(info)))
        return HeadInfo(_params.PRECISIONS[info.precision], info.raises, info.first_error, info.last_error)

    def __repr__(self) -> str:
        info = self.info
        shapes = ", ".join(f"{name} {list(key[0])}" for name, key in zip("qkv", self._keys))
        return f"<clary.Plan {shapes}, {info.precision} on {info.isa}, {self._plan.context.threads} threads>"


def _describe_key(key: _arrays.Key) -> str:
    return f"{list(key[0])} with strides {list(key[1])} and dtype (code {key[2][0]}, {key[2][1]} bits)"


def plan(
    q: Any,
    k: Any,
    v: Any,
    *,
    layout: Layout = "bhsd",
    causal: Causal = False,
    scale: float | None = None,
    mask: Any = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    sinks: Any = None,
    precision: Precision = "auto",
    return_lse: bool = False,
    guard: float | None = None,
    guard_rows: int = 16,
    threads: int | None = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    **unknown: NoReturn,
) -> Plan:
    """Checks a call of attention() without running it. Arguments and errors are those of attention().

    Shapes, strides and dtypes of q, k and v are remembered, their data are not. The mask and the other tensors are
    kept, and read when the plan runs.
    """
    if unknown:
        _params.reject_unknown("plan", unknown, _KNOWN.replace(", downcast", ""))
    options = _params.options(layout, precision, causal, scale, softcap, window, guard, guard_rows)
    extras = Extras(mask, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k)
    library = _arrays.library_of("q", q)
    _arrays.require(library, "k", k)
    _arrays.require(library, "v", v)
    keys = tuple(library.look(name, array)[1] for name, array in (("q", q), ("k", k), ("v", v)))
    slot = _context.take(threads)
    try:
        made = make_plan(slot.context, library, keys, options, extras if extras.any() else NO_EXTRAS, return_lse)
    finally:
        _context.give_back(threads, slot)
    return Plan(made, library, keys)


def describe(plan: _context.Plan) -> str:
    length = _lib.lib.clary_plan_describe(plan.handle, None, 0)
    buffer = ctypes.create_string_buffer(length + 1)
    _lib.lib.clary_plan_describe(plan.handle, buffer, length + 1)
    return _lib.text(buffer.value)


def merge(
    outs: Sequence[Any], lses: Sequence[Any], *, layout: Layout = "bhsd", threads: int | None = None
) -> tuple[Any, Any]:
    """Merges results of the same queries over disjoint sets of keys, in the order given, as attention over all keys.

    Args:
        outs: each [B, H, L, D] (or the bshd form), float32, float16 or bfloat16.
        lses: each float32 [B, H, L], natural logarithm. A part whose lse is -inf adds nothing.

    Returns: (out, lse), out in the dtype of outs[0].

    Raises: ValueError, TypeError naming the argument.
    """
    if layout not in _params.LAYOUTS:
        raise ValueError(f"layout: is {layout!r}, allowed are 'bhsd' and 'bshd'")
    if len(outs) == 0 or len(outs) != len(lses):
        raise ValueError(f"lses: has {len(lses)} parts and outs has {len(outs)}; both must have as many, at least one")
    library = _arrays.library_of("outs", outs[0])
    views: dict[str, list[_lib.Tensor]] = {"outs": [], "lses": []}
    owners = []
    for name, arrays in (("outs", outs), ("lses", lses)):
        for array in arrays:
            _arrays.require(library, name, array)
            data, key, owner = library.look(name, array)
            owners.append(owner)
            views[name].append(_arrays.tensor(data, key[0], library.strides(key), key[2]))
    first = library.look("outs", outs[0])[1]
    out, out_data = library.empty(first[0], first[2], outs[0])
    lse_shape = tuple(library.look("lses", lses[0])[1][0])
    lse, lse_data = library.empty(lse_shape, F32, lses[0])
    result = _arrays.tensor(out_data, first[0], None, first[2]), _arrays.tensor(lse_data, lse_shape, None, F32)
    pointers = ctypes.POINTER(_lib.Tensor) * len(outs)
    slot = _context.take(threads)
    try:
        _lib.check(
            _lib.lib.clary_merge(
                pointers(*map(ctypes.pointer, views["outs"])),
                pointers(*map(ctypes.pointer, views["lses"])),
                len(outs),
                _params.LAYOUTS.index(layout),
                *map(ctypes.byref, result),
                slot.context.handle,
            )
        )
    finally:
        _context.give_back(threads, slot)
    return library.result(out, outs[0]), library.result(lse, lses[0])


@dataclasses.dataclass(frozen=True, slots=True)
class Info:
    """This machine as the library sees it. isas: every instruction set in the binary, best first: does it run here?"""

    version: str
    cpu: str
    isa: str
    isas: dict[str, bool]
    threads: int
    library: str


def info() -> Info:
    """The CPU, its instruction sets, the one that is used, and the threads that a call gets."""
    slot = _context.take(None)
    try:
        isa, threads = slot.context.isa, slot.context.threads
    finally:
        _context.give_back(None, slot)
    lib = _lib.lib
    names = range(lib.clary_isa_count())
    isas = {_lib.text(lib.clary_isa_name(i)): bool(lib.clary_isa_supported(i)) for i in names}
    return Info(_lib.text(lib.clary_version()), _lib.text(lib.clary_cpu_name()), isa, isas, threads, lib._name)
