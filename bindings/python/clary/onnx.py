"""ONNX: the operator `Attention` of opset 23, 24 and 25, computed by Clary.

    Y, present_key, present_value = clary.onnx.attention(Q, K, V, is_causal=1)
    ReferenceEvaluator(model, new_ops=clary.onnx.ops(precision="int8")).run(None, feeds)

Served is what the operator means in onnx 1.23. Earlier releases gave `is_causal` other meanings under the same opset
numbers: with keys of an external cache (`nonpad_kv_seqlen`), query i saw keys j <= i until 1.22, and sees
j <= i + nonpad_kv_seqlen - Lq now; with `past_key` it saw j <= i until 1.19, and sees j <= i + the past length now.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from . import core
from ._params import Causal, Precision, integer, reject_unknown

__all__ = ["attention", "ops"]

Array = np.ndarray[Any, np.dtype[Any]]

_SOFTMAX_TYPES = {1: "FLOAT", 10: "FLOAT16", 11: "DOUBLE", 16: "BFLOAT16"}
_KNOWN = (
    "is_causal, scale, softcap, q_num_heads, kv_num_heads, softmax_precision, qk_matmul_output_mode, left_window_size, "
    "right_window_size, precision, guard, guard_rows, threads, downcast"
)


def attention(
    Q: Array,
    K: Array,
    V: Array,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
    *,
    is_causal: int = 0,
    scale: float | None = None,
    softcap: float | None = 0.0,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    softmax_precision: int | None = None,
    qk_matmul_output_mode: int | None = None,
    left_window_size: int | None = -1,
    right_window_size: int | None = -1,
    precision: Precision = "exact",
    guard: float | None = None,
    guard_rows: int = 16,
    threads: int | None = None,
    downcast: bool = False,
    **unknown: NoReturn,
) -> tuple[Array, Array, Array]:
    """ONNX's Attention of NumPy arrays. Names and meanings are those of the operator; None: not given.

    Args:
        Q: [B, Hq, Lq, Dk], or [B, Lq, Hq * Dk] with q_num_heads. float32, float16 or bfloat16 (of ml_dtypes).
        K: [B, Hkv, L, Dk], or [B, L, Hkv * Dk] with kv_num_heads.
        V: [B, Hkv, L, Dv], or [B, L, Hkv * Dv].
        attn_mask: bool or float, broadcast to [B, Hq, Lq, Lk], Lk = past + L. Keys that it does not reach are hidden.
        past_key, past_value: [B, Hkv, past, Dk], [B, Hkv, past, Dv]: keys and values before K and V.
        nonpad_kv_seqlen: integers [B]: how many keys of each batch entry are there; the others are not read.
        softmax_precision: 1, 10, 11 or 16. The softmax of "exact" is float32 for all of them: no worse than asked for,
            but for DOUBLE (11), from which it differs by rounding in float32.
        qk_matmul_output_mode: must be None: the output `qk_matmul_output` is not offered.
        precision, guard, guard_rows, threads, downcast: as for clary.attention().

    Returns: (Y, present_key, present_value): Y [B, Hq, Lq, Dv] or [B, Lq, Hq * Dv] like Q; the others
        [B, Hkv, Lk, Dk] and [B, Hkv, Lk, Dv], views of K and V without a past.

    Raises: ValueError, TypeError naming the argument; NotImplementedError for qk_matmul_output; clary.Error.
    """
    if unknown:
        reject_unknown("clary.onnx.attention", unknown, _KNOWN)
    if qk_matmul_output_mode is not None:
        raise NotImplementedError(
            "qk_matmul_output: is not offered, so qk_matmul_output_mode must not be given; scores are never in memory"
        )
    if softmax_precision is not None and softmax_precision not in _SOFTMAX_TYPES:
        raise ValueError(f"softmax_precision: is {softmax_precision}, allowed are {_SOFTMAX_TYPES}")
    flat = _is_flat(Q, K, V)
    q = _heads("Q", Q, "q_num_heads", q_num_heads)
    k, v = (_heads(name, array, "kv_num_heads", kv_num_heads) for name, array in (("K", K), ("V", V)))
    k, v, past = _with_past(k, v, past_key, past_value)
    _check_mask(attn_mask, k.shape[2])
    options: dict[str, Any] = {
        "layout": "bshd" if flat else "bhsd",
        "scale": scale,
        "softcap": softcap or 0.0,
        "precision": precision,
        "guard": guard,
        "guard_rows": guard_rows,
        "threads": threads,
        "downcast": downcast,
    }
    left, right = _bound("left_window_size", left_window_size), _bound("right_window_size", right_window_size)
    if is_causal not in (0, 1):
        raise ValueError(f"is_causal: is {is_causal!r}, allowed are 0 and 1")
    if is_causal:
        right = 0
    if nonpad_kv_seqlen is None:
        out = _attend(q, k, v, attn_mask, past, left, right, options)
    elif past_key is not None:
        raise ValueError("nonpad_kv_seqlen: must not be given together with past_key and past_value")
    else:
        out = _attend_each(q, k, v, attn_mask, _lengths(nonpad_kv_seqlen, k), left, right, options)
    return out.reshape(*Q.shape[:2], -1) if flat else out, k, v


def _attend_each(
    q: Array, k: Array, v: Array, mask: Array | None, lengths: list[int], left: int, right: int, options: dict[str, Any]
) -> Array:
    """Each batch entry with its own number of keys; its last query stands at its last key."""
    outs = []
    for b, length in enumerate(lengths):
        entry = slice(b, b + 1)
        own = mask[entry] if mask is not None and mask.ndim == 4 and mask.shape[0] > 1 else mask
        keys = np.s_[entry, :, :length]
        outs.append(_attend(q[entry], k[keys], v[keys], own, length - q.shape[2], left, right, options))
    return np.concatenate(outs) if outs else np.empty((*q.shape[:3], v.shape[3]), q.dtype)


def _attend(
    q: Array, k: Array, v: Array, mask: Array | None, offset: int, left: int, right: int, options: dict[str, Any]
) -> Array:
    """Query i stands at key p = i + offset and sees keys p - left to p + right; -1 = open. [B, H, L, D] inputs."""
    if mask is not None:
        shown = min(k.shape[2], mask.shape[-1])  # the keys that a mask does not reach are hidden
        k, v, mask = k[:, :, :shown], v[:, :, :shown], mask[..., :shown]
    causal: Causal = False
    window = None
    if left >= 0 or right >= 0:
        # The right side as a causal offset, to which a window is aligned; an open one ends behind the last key.
        ahead = right if right >= 0 else max(0, k.shape[2] - offset)
        causal = offset + ahead
        window = (left + ahead, -1) if left >= 0 else None
    if options["layout"] == "bshd":
        q, k, v = (array.transpose(0, 2, 1, 3) for array in (q, k, v))
    out: Array = core.attention(q, k, v, mask=mask, causal=causal, window=window, **options)
    return out


def _is_flat(q: Any, k: Any, v: Any) -> bool:
    """Whether heads and channels share a dimension."""
    for name, array in (("Q", q), ("K", k), ("V", v)):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name}: is a {type(array).__name__}, must be a NumPy array")
        if array.ndim != q.ndim or array.ndim not in (3, 4):
            raise ValueError(f"{name}: has {array.ndim} dimensions; Q, K and V must all have 3, or all 4")
        if array.shape[0] != q.shape[0]:
            raise ValueError(f"{name}: has batch size {array.shape[0]}, must be {q.shape[0]} like Q")
    return bool(q.ndim == 3)


def _heads(name: str, array: Array, attribute: str, heads: int | None) -> Array:
    """[B, H, L, D] view of an input."""
    if array.ndim == 4:
        if heads is not None and heads != array.shape[1]:
            raise ValueError(
                f"{attribute}: is {heads}, but {name} of shape {list(array.shape)} has {array.shape[1]} heads"
            )
        return array
    if heads is None or heads < 1 or array.shape[2] % heads:
        raise ValueError(
            f"{attribute}: is {heads}, must be a divisor of {array.shape[2]}, the last dimension of {name}"
        )
    return array.reshape(*array.shape[:2], heads, array.shape[2] // heads).transpose(0, 2, 1, 3)


def _with_past(k: Array, v: Array, past_key: Array | None, past_value: Array | None) -> tuple[Array, Array, int]:
    """present_key, present_value, and the length of the past."""
    if past_key is None and past_value is None:
        return k, v, 0
    if past_key is None or past_value is None:
        raise ValueError("past_key, past_value: must be given together")
    for name, past, new in (("past_key", past_key, k), ("past_value", past_value, v)):
        wanted = (*new.shape[:2], past_key.shape[2] if past_key.ndim == 4 else -1, new.shape[3])
        if past.shape != wanted or past.dtype != new.dtype:
            raise ValueError(
                f"{name}: is {past.dtype} {list(past.shape)}, must be {new.dtype} "
                f"[{wanted[0]}, {wanted[1]}, past length, {wanted[3]}]"
            )
    return np.concatenate((past_key, k), 2), np.concatenate((past_value, v), 2), past_key.shape[2]


def _check_mask(mask: Any, keys: int) -> None:
    if mask is None:
        return
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"attn_mask: is a {type(mask).__name__}, must be a NumPy array")
    if not 1 <= mask.ndim <= 4 or mask.shape[-1] > keys:
        raise ValueError(
            f"attn_mask: has shape {list(mask.shape)}, must have 1 to 4 dimensions, the last at most {keys}, the keys"
        )


def _lengths(lengths: Any, k: Array) -> list[int]:
    array = np.asarray(lengths)
    if array.shape != (k.shape[0],) or array.dtype.kind not in "iu":
        raise ValueError(f"nonpad_kv_seqlen: is {array.dtype} {list(array.shape)}, must be integers [{k.shape[0]}]")
    if array.size and not 0 <= array.min() <= array.max() <= k.shape[2]:
        raise ValueError(
            f"nonpad_kv_seqlen: is {array.tolist()}, must be within 0 to {k.shape[2]}, the keys that K has"
        )
    return [int(length) for length in array]


def _bound(name: str, value: int | None) -> int:
    number = -1 if value is None else integer(name, value, 64)
    if number < -1:
        raise ValueError(f"{name}: is {number}, must be -1 (open) or more")
    return number


def ops(
    precision: Precision = "exact",
    *,
    guard: float | None = None,
    guard_rows: int = 16,
    threads: int | None = None,
    downcast: bool = False,
) -> list[type]:
    """Implementations for `onnx.reference.ReferenceEvaluator(model, new_ops=...)`: Attention computed by Clary.

    Args: as for clary.attention(). Raises: ImportError without the package onnx.

    A node that has the output qk_matmul_output is refused with NotImplementedError when it runs.
    """
    from onnx.reference.op_run import OpRun

    options: dict[str, Any] = {
        "precision": precision,
        "guard": guard,
        "guard_rows": guard_rows,
        "threads": threads,
        "downcast": downcast,
    }

    class Attention(OpRun):  # the evaluator finds it by its name
        op_domain = ""

        def _run(self, *inputs: Any, qk_matmul_output_mode: int | None = None, **attributes: Any) -> tuple[Array, ...]:
            # The mode describes the fourth output, and nothing when that is absent.
            if len(self.output) > 3 and self.output[3]:
                attributes["qk_matmul_output_mode"] = qk_matmul_output_mode or 0
            return attention(*inputs, **(attributes | options))

    return [Attention]
