"""Described attention problems: one line of words, the grammar of docs/benchmarks.md, and the same numbers as there."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ._params import LAYOUTS, PRECISIONS

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = ("f32", "f16", "bf16")
DATA = ("normal", "outliers", "peaked", "constant")
MASKS = ("bool", "additive", "key_padding", "block")
_NOT_HERE = ("lens_q=", "lens_k=", "out=")  # words of the grammar that the C++ driver alone serves
_MOST_ELEMENTS = 1 << 31


@dataclasses.dataclass(frozen=True)
class Problem:
    """precision: "" when the line names none. causal: False, "top_left", "bottom_right" or an offset.

    broadcast: letters of bhqk in which a mask has size 1.
    """

    b: int = 1
    hq: int = 1
    hkv: int = 1
    lq: int = 1024
    lk: int = 1024
    d: int = 64
    dv: int = 64
    dtype: str = "f32"
    precision: str = ""
    layout: str = "bhsd"
    causal: bool | int | str = False
    window: tuple[int, int] = (-1, -1)
    scale: float | None = None
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    mask: str | None = None
    keep: float = 0.5
    broadcast: str = ""
    mask_input_type: bool = False
    guard: float | None = None
    data: str = "normal"
    seed: int = 1

    @property
    def offset(self) -> int:
        """Query i stands at key i + offset."""
        if self.causal == "top_left":
            return 0
        return self.lk - self.lq if isinstance(self.causal, (bool, str)) else self.causal


# ---- parsing -----------------------------------------------------------------------------------------------------


def parse(line: str) -> Problem:
    """Raises: ValueError naming the word and what is allowed."""
    values: dict[str, Any] = {}
    words = line.split()
    if not words:
        raise ValueError("problem: is empty; for example 'b1 hq32 hkv8 l4096 d128 causal bf16 int8'")
    for word in words:
        if word.startswith(_NOT_HERE):
            raise ValueError(f"problem: word '{word}': is not served from Python; the command 'clary bench' serves it")
        if word == "bf16" and "dtype" in values:  # the first one of a line is the dtype
            values["precision"] = word
        elif not _parse_name(word, values) and not _parse_number(word, values):
            raise ValueError(f"problem: word '{word}': is not one of the grammar (docs/benchmarks.md)")
    problem = Problem(**({"dv": values.get("d", Problem.d)} | values))
    if problem.hq % problem.hkv:
        raise ValueError(f"problem: '{line}': hq must be a multiple of hkv")
    if max(problem.d, problem.dv) > 1024:
        raise ValueError(f"problem: '{line}': head dims are at most 1024")
    if problem.b * problem.hq * max(problem.lq, problem.lk) * max(problem.d, problem.dv) > _MOST_ELEMENTS:
        raise ValueError(f"problem: '{line}': has tensors of more than 2^31 elements")
    return problem


def read(path: pathlib.Path) -> list[str]:
    """The problems of a file, one a line, '#' begins a comment. Raises: ValueError naming file and line, OSError."""
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                parse(text)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
            lines.append(text)
    if not lines:
        raise ValueError(f"{path}: has no problem in it")
    return lines


def _parse_name(word: str, values: dict[str, Any]) -> bool:
    """Words of letters, and words with '='."""
    key, equals, text = word.partition("=")
    if word in DTYPES:
        values["dtype"] = word
    elif word in PRECISIONS:
        values["precision"] = word
    elif word in LAYOUTS:
        values["layout"] = word
    elif word in ("alibi", "sinks"):
        values[word] = True
    elif word == "causal":
        values["causal"] = "bottom_right"
    elif word == "mask_dtype=input":
        values["mask_input_type"] = True
    elif equals and key == "causal":
        values["causal"] = text if text in ("top_left", "bottom_right") else _integer(word, text, None)
    elif equals and key in ("precision", "data"):
        values[key] = _choice(word, text, PRECISIONS if key == "precision" else DATA)
    elif equals and key == "mask":
        _parse_mask(word, text, values)
    else:
        return False
    return True


def _parse_mask(word: str, text: str, values: dict[str, Any]) -> None:
    kind, *rest = text.split(":")
    values["mask"] = _choice(word, kind, MASKS)
    if len(rest) > 2 or set(rest[1] if rest[1:] else "") - set("bhqk"):
        raise ValueError(f"problem: word '{word}': must be mask=KIND[:KEEP[:DIMS]], DIMS letters of bhqk")
    if rest:
        values["keep"] = _real(word, rest[0], 0, 1)
    if rest[1:]:
        values["broadcast"] = rest[1]


_INTEGERS = {
    "b": (("b",), 0),
    "h": (("hq", "hkv"), 1),
    "hq": (("hq",), 1),
    "hkv": (("hkv",), 1),
    "l": (("lq", "lk"), 0),
    "lq": (("lq",), 0),
    "lk": (("lk",), 0),
    "d": (("d",), 1),
    "dv": (("dv",), 1),
    "seed": (("seed",), 0),
}


def _parse_number(word: str, values: dict[str, Any]) -> bool:
    """A name and a number without a sign between them."""
    match = re.fullmatch(r"([a-z]+)(-?[.0-9].*|inf|nan)", word)
    if match is None:
        return False
    name, text = match.groups()
    if name == "window":
        sides = text.split(",")
        if len(sides) != 2:
            raise ValueError(f"problem: word '{word}': must be windowLEFT,RIGHT, -1 = open")
        values["window"] = _integer(word, sides[0], -1), _integer(word, sides[1], -1)
    elif name in ("scale", "softcap", "guard"):
        values[name] = _real(word, text, -math.inf if name == "scale" else 0, math.inf)
    elif name in _INTEGERS:
        fields, least = _INTEGERS[name]
        values |= dict.fromkeys(fields, _integer(word, text, least))
    else:
        return False
    return True


def _integer(word: str, text: str, least: int | None) -> int:
    if not re.fullmatch(r"-?[0-9]+", text) or (least is not None and int(text) < least):
        raise ValueError(
            f"problem: word '{word}': must have an integer" + (f" >= {least}" if least is not None else "")
        )
    return int(text)


def _real(word: str, text: str, least: float, most: float) -> float:
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"problem: word '{word}': must have a finite number within {least} to {most}")
    return value


def _choice(word: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ValueError(f"problem: word '{word}': allowed are {', '.join(choices)}")
    return text


# ---- numbers -----------------------------------------------------------------------------------------------------

_Q, _K, _V, _MASK, _MASK_VALUE, _SINKS, _Q_CHANNELS, _K_CHANNELS, _V_CHANNELS = range(1, 10)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def _mix(x: Any) -> Any:
    """The finaliser of splitmix64 on uint64."""
    with np.errstate(over="ignore"):
        x = np.uint64(0x9E3779B97F4A7C15) + x
        for shift, factor in _MIX:
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return x ^ (x >> np.uint64(31))


class _Random:
    """Numbers by index: functions of the seed, the stream and the index alone."""

    def __init__(self, seed: int, stream: int) -> None:
        with np.errstate(over="ignore"):
            self._key = _mix(_mix(np.uint64(seed)) + np.uint64(stream))

    def bits(self, index: Any) -> Any:
        return _mix(self._key ^ _mix(np.asarray(index, np.uint64)))

    def uniform(self, index: Any) -> Any:
        return (self.bits(index) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal_pair(self, index: Any) -> tuple[Any, Any]:
        x = self.bits(index)
        radius = np.sqrt(-2 * np.log(((x >> np.uint64(32)).astype(np.float64) + 1) * 2.0**-32))
        angle = 2 * np.pi * (x & np.uint64(0xFFFFFFFF)).astype(np.float64) * 2.0**-32
        return radius * np.cos(angle), radius * np.sin(angle)

    def normal(self, index: Any) -> Any:
        return self.normal_pair(index)[0]


_Rule = Callable[[_Random, int, int], tuple[Any, Any]]  # (random, head, channels) -> factor, offset of each channel


def _rules(data: str) -> tuple[_Rule, _Rule, _Rule]:
    """What a kind of data does to the channels of Q, K and V: value = factor * n + offset, n of N(0, 1)."""

    def plain(factor: float) -> _Rule:
        return lambda random, head, channels: (factor, 0.0)

    def constant(random: _Random, head: int, channels: int) -> tuple[Any, Any]:
        return 0.0, random.normal(head * 2048 + np.arange(channels))

    def large_q(random: _Random, head: int, channels: int) -> tuple[Any, Any]:
        first = int(random.bits(head)) % channels
        factor = np.ones(channels)
        factor[[first, (first + 1 + channels // 3) % channels]] = 4
        return factor, 0.0

    def offset_k(random: _Random, head: int, channels: int) -> tuple[Any, Any]:
        count = max(1, (channels + 10) // 20)
        place = (np.arange(channels) - int(random.bits(head)) % channels) % channels
        step = channels // count
        u = random.uniform(head * 2048 + np.arange(channels) + (1 << 40)) * 2 - 1
        return 1.0, np.where((place % step == 0) & (place // step < count), 5 * u + np.where(u < 0, -5, 5), 0)

    def offset_v(random: _Random, head: int, channels: int) -> tuple[Any, Any]:
        return 1.0, random.uniform(head * 2048 + np.arange(channels)) * 10 - 5

    one = plain(1.0)
    kinds: dict[str, tuple[_Rule, _Rule, _Rule]] = {
        "normal": (one, one, one),
        "outliers": (large_q, offset_k, offset_v),
        "peaked": (plain(3.0), one, one),
        "constant": (constant, constant, constant),
    }
    return kinds[data]


def tensors(p: Problem) -> tuple[Array, Array, Array]:
    """Q, K and V, float32 [B, H, L, D] whatever the layout and the dtype of the problem."""
    shapes = ((p.hq, p.lq, p.d), (p.hkv, p.lk, p.d), (p.hkv, p.lk, p.dv))
    streams = ((_Q, _Q_CHANNELS), (_K, _K_CHANNELS), (_V, _V_CHANNELS))
    arrays = []
    for (heads, length, dim), (stream, channel_stream), rule in zip(shapes, streams, _rules(p.data)):
        random, channel_random = _Random(p.seed, stream), _Random(p.seed, channel_stream)
        array = np.empty((p.b * heads, length, dim), np.float32)
        cells = (np.arange(length)[:, None] << 10) + np.arange(0, dim, 2)
        for head in range(p.b * heads):
            factor, offset = rule(channel_random, head, dim)
            pairs = np.stack(random.normal_pair((head << 30) + cells), -1).reshape(length, -1)[:, :dim]
            array[head] = factor * pairs + offset
        arrays.append(array.reshape(p.b, heads, length, dim))
    return arrays[0], arrays[1], arrays[2]


def mask(p: Problem) -> Array | None:
    """The mask, bool or float32, of four dimensions that broadcast to [B, Hq, Lq, Lk]."""
    if p.mask is None:
        return None
    random = _Random(p.seed, _MASK)
    if p.mask == "key_padding":
        factors = 0.5 + random.uniform(np.arange(p.b))
        factors[:1] = 1
        lengths = np.minimum(p.lk, np.floor(p.keep * factors * p.lk + 0.5))
        return np.asarray(np.arange(p.lk) < lengths[:, None, None, None])
    sizes = zip("bhqk", (p.b, p.hq, p.lq, p.lk))
    shape = tuple(1 if letter in p.broadcast else size for letter, size in sizes)
    if p.mask == "block":
        return _block_mask(p, random, shape)
    index = np.arange(math.prod(shape)).reshape(shape)
    visible = random.uniform(index) < p.keep
    if p.mask == "bool":
        return np.asarray(visible)
    return np.where(visible, _Random(p.seed, _MASK_VALUE).normal(index), -np.inf).astype(np.float32)


def _block_mask(p: Problem, random: _Random, shape: tuple[int, ...]) -> Array:
    """Blocks of 128 queries x 256 keys; of each row of blocks the share `keep`, those with the smallest numbers."""
    b, h, rows, keys = shape
    down, across = -(-rows // 128), -(-keys // 256)
    order = np.argsort(random.bits(np.arange(b * h * down * across)).reshape(b, h, down, across), -1)
    blocks = np.zeros(order.shape, bool)
    np.put_along_axis(blocks, order[..., : math.floor(p.keep * across + 0.5)], True, -1)
    return blocks.repeat(128, 2)[:, :, :rows].repeat(256, 3)[..., :keys]


def alibi_slopes(p: Problem) -> Array | None:
    """float32 [Hq]."""
    return np.exp2(-8.0 * np.arange(1, p.hq + 1) / p.hq).astype(np.float32) if p.alibi else None


def sinks(p: Problem) -> Array | None:
    """float32 [Hq]."""
    return _Random(p.seed, _SINKS).normal(np.arange(p.hq)).astype(np.float32) if p.sinks else None


# ---- what may be seen, and the definition ------------------------------------------------------------------------


def key_range(p: Problem, rows: Array) -> tuple[Array, Array]:
    """First key, and the one behind the last, that causality and the window let each row see."""
    at = rows + p.offset
    left, right = p.window
    low = np.clip(at - left, 0, p.lk) if left >= 0 else np.zeros_like(at)
    high = np.full_like(at, p.lk)
    if p.causal is not False:
        high = np.minimum(high, at + 1)
    if right >= 0:
        high = np.minimum(high, at + right + 1)
    return low, np.maximum(high, low)


def visible(p: Problem) -> Array | None:
    """bool [Lq, Lk]: what causality and the window leave; None: everything."""
    low, high = key_range(p, np.arange(p.lq))
    if np.all(low == 0) and np.all(high == p.lk):
        return None
    keys = np.arange(p.lk)
    return np.asarray((keys >= low[:, None]) & (keys < high[:, None]))


def visible_scores(p: Problem, drawn_mask: Array | None) -> float:
    """How many scores all queries of all heads may see."""
    if drawn_mask is None:
        low, high = key_range(p, np.arange(p.lq))
        return float((high - low).sum()) * p.b * p.hq
    seen = drawn_mask if drawn_mask.dtype == bool else drawn_mask > -np.inf
    inside = visible(p)
    seen = seen if inside is None else seen & inside
    return float(seen.sum()) * (p.b * p.hq * p.lq * p.lk / max(seen.size, 1))


def sample_rows(p: Problem, most: int) -> Array:
    """[N, 3] of (batch, head, row): heads evenly, rows by the golden ratio, in step with no number of heads."""
    heads, rows = p.b * p.hq, p.lq
    count = min(most, heads * rows)
    if count == heads * rows:
        index = np.arange(count)
        head, row = index // max(rows, 1), index % max(rows, 1)
    else:
        head = (np.arange(count) * heads) // count
        row = ((np.arange(count) + 0.5) * 0.6180339887498949 % 1 * rows).astype(np.int64)
    return np.stack([head // p.hq, head % p.hq, row], -1)


def exact_rows(p: Problem, q: Array, k: Array, v: Array, drawn_mask: Array | None, rows: Array) -> Array:
    """float64 [N, Dv]: attention by its definition for rows of [B, H, L, D] arrays."""
    slopes, extra = alibi_slopes(p), sinks(p)
    full = None if drawn_mask is None else np.broadcast_to(drawn_mask, (p.b, p.hq, p.lq, p.lk))
    out = np.zeros((len(rows), p.dv))
    low, high = key_range(p, rows[:, 2])
    for n, (b, h, i) in enumerate(rows):
        keys = slice(low[n], high[n])
        group = h // (p.hq // p.hkv)
        scores = k[b, group, keys].astype(np.float64) @ q[b, h, i].astype(np.float64)
        scores *= p.d**-0.5 if p.scale is None else p.scale
        if p.softcap > 0:
            scores = p.softcap * np.tanh(scores / p.softcap)
        if slopes is not None:
            scores -= float(slopes[h]) * np.abs(i + p.offset - np.arange(low[n], high[n]))
        if full is not None:
            seen = full[b, h, i, keys]
            scores = np.where(seen, scores, -np.inf) if seen.dtype == bool else scores + seen
        top = max(scores.max(initial=-np.inf), -np.inf if extra is None else float(extra[h]))
        if top == -np.inf:
            continue
        weights = np.exp(scores - top)
        total = weights.sum() + (0.0 if extra is None else math.exp(float(extra[h]) - top))
        out[n] = weights @ v[b, group, keys].astype(np.float64) / total
    return out
