"""Contexts (threads and workspace of the library) and the plans that live in them.

A context serves one call at a time. Calls take a free slot with the right number of threads and give it back, so that
Python threads run side by side and no more contexts exist than calls ever ran at once.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Hashable
from ctypes import byref
from typing import Any

from . import _lib
from ._params import integer

# A plan is a few hundred bytes plus O(batch x heads); a model has a handful of shapes, a generation one per length.
_MOST_PLANS = 64


class Context:
    """clary_context."""

    def __init__(self, threads: int | None) -> None:
        self.handle = ctypes.c_void_p()
        self._process = os.getpid()
        options = _lib.ContextOptions()
        _lib.lib.clary_context_options_init(byref(options))
        if threads is not None:
            options.threads = integer("threads", threads, 32)
        self._destroy = _lib.lib.clary_context_destroy
        _lib.check(_lib.lib.clary_context_create(byref(options), byref(self.handle)), unsupported=_lib.Error)
        self.threads = int(options.threads)

    @property
    def isa(self) -> str:
        return _lib.text(_lib.lib.clary_context_isa(self.handle))

    def belongs_to_this_process(self) -> bool:
        return self._process == os.getpid()

    def __del__(self) -> None:
        # Threads do not survive a fork: a child that joined them would wait for ever.
        if self.handle and self.belongs_to_this_process():
            self._destroy(self.handle)


class Plan:
    """clary_plan in a context that it keeps. `kept` is what its parameters point to: the mask and other tensors."""

    __slots__ = ("context", "handle", "kept", "lse_shape", "out_shape", "_destroy")

    def __init__(
        self,
        context: Context,
        q: _lib.Tensor,
        k: _lib.Tensor,
        v: _lib.Tensor,
        out: _lib.Tensor,
        lse: _lib.Tensor | None,
        params: _lib.AttentionParams,
        kept: tuple[Any, ...],
    ) -> None:
        self.context, self.kept = context, kept
        self.out_shape: tuple[int, ...] = tuple(out.shape[: out.ndim])
        self.lse_shape: tuple[int, ...] | None = None if lse is None else tuple(lse.shape[: lse.ndim])
        self.handle = ctypes.c_void_p()
        self._destroy = _lib.lib.clary_plan_destroy
        tensors = [None if tensor is None else byref(tensor) for tensor in (q, k, v, out, lse)]
        _lib.check(_lib.lib.clary_plan_create(*tensors, byref(params), context.handle, byref(self.handle)))

    def __del__(self) -> None:
        if self.handle:
            self._destroy(self.handle)


class Slot:
    """A context and the plans of the shapes that it has seen, the least recently used first."""

    def __init__(self, threads: int | None) -> None:
        self.context = Context(threads)
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()

    def find(self, key: Hashable) -> Plan | None:
        plan = self._plans.get(key)
        if plan is not None:
            self._plans.move_to_end(key)
        return plan

    def remember(self, key: Hashable, plan: Plan) -> None:
        self._plans[key] = plan
        if len(self._plans) > _MOST_PLANS:
            self._plans.popitem(last=False)


_free: defaultdict[int | None, list[Slot]] = defaultdict(list)


def take(threads: int | None) -> Slot:
    """A slot that no other call has, for `threads` threads (None: as many as torch uses, or as there are cores)."""
    if threads is None and (torch := sys.modules.get("torch")) is not None and hasattr(torch, "get_num_threads"):
        threads = torch.get_num_threads()
    try:
        return _free[threads].pop()
    except IndexError:
        return Slot(threads)


def give_back(threads: int | None, slot: Slot) -> None:
    """`threads` as it was for take()."""
    _free[slot.context.threads if threads is None else threads].append(slot)


# The children's contexts are their own; the parent's are forgotten there, not destroyed.
os.register_at_fork(after_in_child=_free.clear)
