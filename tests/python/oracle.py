"""Attention from its definition in float64 NumPy, with every feature of docs/semantics.md, and measures of error.

Shares no code with the package.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: Any = False,
    scale: float | None = None,
    mask: Any = None,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    sinks: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(out, lse) in float64 of [B, H, L, D] arrays; convert bfloat16 with double() first."""
    q, k, v = double(q), double(k), double(v)
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("bhid,bhjd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    i, j = np.arange(q.shape[2])[:, None], np.arange(k.shape[2])[None, :]
    offset = k.shape[2] - q.shape[2] if causal is False or causal == "bottom_right" else causal
    offset = 0 if causal == "top_left" else offset
    if alibi_slopes is not None:
        slopes = double(alibi_slopes)
        scores = scores - slopes[..., None, None] * np.abs(i + offset - j)
    visible = np.ones(scores.shape, bool)
    if causal is not False:
        visible &= j <= i + offset
    if window is not None:
        left, right = window
        visible &= (left == -1) | (j >= i + offset - left)
        visible &= (right == -1) | (j <= i + offset + right)
    if mask is not None:
        mask = np.asarray(mask) if np.asarray(mask).dtype == bool else double(mask)
        visible &= mask if mask.dtype == bool else mask > -np.inf
        if mask.dtype != bool:
            scores = scores + np.where(mask > -np.inf, mask, 0)
    scores = np.where(visible, scores, -np.inf)
    columns = (
        scores
        if sinks is None
        else np.concatenate([scores, np.broadcast_to(double(sinks)[:, None, None], (*scores.shape[:3], 1))], -1)
    )
    top = columns.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(columns - np.where(np.isfinite(top), top, 0))
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + np.where(np.isfinite(top), top, 0))[..., 0]
    share = weights[..., : k.shape[2]] / np.where(total == 0, 1, total)
    return share @ v, lse


def double(x: Any) -> np.ndarray:
    """float64 of a NumPy array or a torch tensor of any type."""
    if hasattr(x, "detach"):
        return x.detach().double().numpy()
    return np.asarray(x).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Errors:
    """relative L2 sqrt(sum d^2 / sum ref^2), relative L1 sum|d| / sum|ref|, RMSE, cosine of both as long vectors."""

    l2: float
    l1: float
    rmse: float
    cosine: float


def errors(out: Any, reference: Any) -> Errors:
    out, reference = double(out).ravel(), double(reference).ravel()
    d = out - reference
    norms = np.linalg.norm(out) * np.linalg.norm(reference)
    return Errors(
        float(np.linalg.norm(d) / max(np.linalg.norm(reference), 1e-300)),
        float(np.abs(d).sum() / max(np.abs(reference).sum(), 1e-300)),
        float(np.sqrt(np.mean(d * d))) if d.size else 0.0,
        float(out @ reference / norms) if norms else 1.0,
    )
