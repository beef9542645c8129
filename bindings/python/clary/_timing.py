"""Times of calls that run in turns, and the peaks of this machine."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _lib

_WARM_UP_S = 0.05  # pages, caches and the clock frequency settle within that
_SHORT_S = 0.02
_FEWEST, _MOST = 5, 100_000


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, 10th and 90th percentile of `runs`."""

    median_s: float
    p10_s: float
    p90_s: float
    runs: int


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def summary(seconds: Sequence[float]) -> Timing:
    p10, median, p90 = (float(value) for value in np.percentile(seconds, (10, 50, 90)))
    return Timing(median, p10, p90, len(seconds))


def in_turns(
    calls: Sequence[Callable[[], Any]], seconds: float, repeat: int | None, progress: Callable[[float], None]
) -> list[Timing]:
    """Each call as often as fits into `seconds`, at least five times, or `repeat` times.

    A short call runs once more before each time that counts: threads of the pool that the call before has used, another
    library's, spin for some milliseconds before they sleep. progress: gets the share that is done.
    """
    short, round_s = [], 0.0
    for call in calls:
        spent = quickest = timed(call)
        while spent < _WARM_UP_S:
            last = timed(call)
            spent, quickest = spent + last, min(quickest, last)
        short.append(quickest < _SHORT_S)
        round_s += quickest * (2 if short[-1] else 1)
    rounds = repeat or int(min(max(seconds * len(calls) / max(round_s, 1e-9), _FEWEST), _MOST))
    samples: list[list[float]] = [[] for _ in calls]
    for done in range(rounds):
        for n, call in enumerate(calls):
            if short[n]:
                call()
            samples[n].append(timed(call))
        progress((done + 1) / rounds)
    return [summary(sample) for sample in samples]


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


class Peaks:
    """GOP/s on registers alone of `threads` threads at once, which share clocks and cores as those of a call do."""

    _F32, _BF16, _INT8 = range(3)

    def __init__(self, isa: str, threads: int, seconds: float = 0.2) -> None:
        self._isa, self._threads, self._seconds = isa, threads, seconds
        self._known: dict[int, float] = {}

    def of(self, precision: str, d: int, dv: int) -> float:
        """The peak for the products of a preset: Q K^T over d channels, P V over dv."""
        f32 = self._get(self._F32)
        if precision == "exact":
            return f32
        # Without bf16 instructions, 16-bit products run as f32.
        bf16 = max(f32, self._get(self._BF16)) if precision in ("bf16", "int8_f16", "bf16x3") else f32
        if precision == "bf16":
            return bf16
        if precision == "bf16x3":
            return max(bf16 / 3, f32)
        int8 = self._get(self._INT8)
        return (d + dv) / (d / int8 + dv / bf16) if precision == "int8_f16" else int8

    def _get(self, what: int) -> float:
        if what not in self._known:
            with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
                rates = pool.map(lambda _: self._measure(what), range(self._threads))
                self._known[what] = math.fsum(rates)
        return self._known[what]

    def _measure(self, what: int) -> float:
        return _lib.measure_peak(self._isa, what, self._seconds)
