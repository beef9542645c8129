"""Keyword arguments of `clary.attention`, checked and in the terms of the C interface."""

from __future__ import annotations

import ctypes
import functools
import math
import operator
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import numpy as np

from . import _lib

Layout = Literal["bhsd", "bshd"]
Precision = Literal["exact", "bf16", "int8_f16", "int8", "int4", "auto", "bf16x3"]  # as numbered in clary.h
Causal = bool | int | Literal["top_left", "bottom_right"] | None

LAYOUTS: tuple[str, ...] = get_args(Layout)
PRECISIONS: tuple[str, ...] = get_args(Precision)
_NOT_CAUSAL, _TOP_LEFT, _BOTTOM_RIGHT, _OFFSET = range(4)


class Options(NamedTuple):
    """What to compute, apart from tensors. Hashable: plans are remembered by it."""

    layout: int = 0
    precision: int = PRECISIONS.index("auto")
    causal: int = _NOT_CAUSAL
    causal_offset: int = 0
    scale: float | None = None
    softcap: float = 0.0
    window_left: int = -1
    window_right: int = -1
    guard: float | None = None
    guard_rows: int = 16

    def params(self) -> _lib.AttentionParams:
        """A clary_attention_params without tensors."""
        params = _lib.AttentionParams()
        _lib.lib.clary_attention_params_init(ctypes.byref(params))
        self.fill(params)
        return params

    def fill(self, params: _lib.AttentionParams) -> None:
        params.layout, params.precision = self.layout, self.precision
        params.causal, params.causal_offset = self.causal, self.causal_offset
        params.softmax_scale = math.nan if self.scale is None else self.scale
        params.softcap = self.softcap
        params.window_left, params.window_right = self.window_left, self.window_right
        params.guard = math.nan if self.guard is None else self.guard
        params.guard_rows = self.guard_rows


def is_compiling() -> bool:
    """Whether torch.compile traces this call, which looks through no cache. Replaced where torch is in use."""
    return False


@functools.lru_cache(maxsize=256, typed=True)
def _cached_options(*arguments: Any) -> Options:
    return _options(*arguments)


def options(*arguments: Any) -> Options:
    """Raises: ValueError, TypeError with the argument's name, what it was and what is allowed."""
    if is_compiling():
        return _options(*arguments)
    try:
        return _cached_options(*arguments)
    except TypeError:  # one of them is not hashable, or wrong
        return _options(*arguments)


def _options(
    layout: str,
    precision: str,
    causal: Causal,
    scale: float | None,
    softcap: float,
    window: tuple[int, int] | None,
    guard: float | None,
    guard_rows: int,
) -> Options:
    kind, offset = _causal(causal)
    left, right = (-1, -1) if window is None else _window(window)
    return Options(
        _choice("layout", layout, LAYOUTS),
        _choice("precision", precision, PRECISIONS),
        kind,
        offset,
        None if scale is None else _number("scale", scale),
        _number("softcap", softcap),
        left,
        right,
        None if guard is None else _number("guard", guard),
        integer("guard_rows", guard_rows, 32),
    )


def reject_unknown(function: str, unknown: dict[str, Any], known: str) -> NoReturn:
    name = next(iter(unknown))
    raise TypeError(f"{name}: is not an argument of {function}(); those are {known}")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> int:
    if isinstance(value, str) and value in choices:
        return choices.index(value)
    raise ValueError(f"{name}: is {value!r}, allowed are {', '.join(map(repr, choices))}")


def _causal(causal: Causal) -> tuple[int, int]:
    if causal is False or causal is None:
        return _NOT_CAUSAL, 0
    if causal == "top_left":
        return _TOP_LEFT, 0
    if causal == "bottom_right":
        return _BOTTOM_RIGHT, 0
    allowed = "allowed are False, 'top_left', 'bottom_right' and an int: query i sees keys j <= i + that number"
    if causal is True:
        raise ValueError(f"causal: is True, which does not say how queries and keys are aligned; {allowed}")
    if isinstance(causal, str):
        raise ValueError(f"causal: is {causal!r}; {allowed}")
    try:
        return _OFFSET, integer("causal", causal, 64)
    except TypeError:
        raise TypeError(f"causal: is {causal!r}; {allowed}") from None


def _window(window: Any) -> tuple[int, int]:
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window: is {window!r}, must be a pair (left, right) of ints, -1 = open, or None")
    return integer("window", window[0], 64), integer("window", window[1], 64)


def integer(name: str, value: Any, bits: int) -> int:
    if value.__class__ is not int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name}: is {value!r}, must be an int")
        value = operator.index(value)
    number: int = value
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise ValueError(f"{name}: is {number}, must fit into {bits} bits")
    return number


def _number(name: str, value: Any) -> float:
    # Arrays are none, not even of one element: options are remembered, and an array can change its value.
    if isinstance(value, (bool, str, bytes)) or hasattr(value, "shape") and not isinstance(value, np.generic):
        raise TypeError(f"{name}: is {value!r}, must be a number")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: is {value!r}, must be a number") from None
    if number != number:
        raise ValueError(f"{name}: is NaN, must be a number")
    return number
