"""What "auto" chooses for each head of a model's captured Q, K and V."""

from __future__ import annotations

import json
import math
import pathlib
from collections import Counter
from typing import Any

import numpy as np

from . import core
from ._extra import need

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors by name, of torch, and the metadata. Raises: ValueError naming the file, OSError."""
    torch = need("torch")
    data = path.read_bytes()
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for name, entry in header.items():
            if entry["dtype"] not in _DTYPES:
                continue
            first, last = entry["data_offsets"]
            raw = np.frombuffer(data, np.uint8, last - first, 8 + length + first).copy()
            tensors[name] = torch.from_numpy(raw).view(getattr(torch, _DTYPES[entry["dtype"]])).reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: is no safetensors file ({error})") from None
    return tensors, metadata


def measure(path: pathlib.Path) -> list[dict[str, Any]]:
    """One entry for each P with tensors P.q, P.k and P.v in the file. Raises: ValueError, OSError."""
    tensors, metadata = read_safetensors(path)
    names = sorted(name[:-2] for name in tensors if name.endswith(".q"))
    names = [name for name in names if f"{name}.k" in tensors and f"{name}.v" in tensors]
    if not names:
        raise ValueError(f"{path}: has no tensors P.q, P.k and P.v; it has {', '.join(sorted(tensors)) or 'none'}")
    try:
        scale = float(metadata["softmax_scale"]) if "softmax_scale" in metadata else None
    except (TypeError, ValueError):
        raise ValueError(f"{path}: softmax_scale is {metadata['softmax_scale']!r}, must be a number") from None
    layout: Any = metadata.get("layout", "bhsd")
    layers = []
    for name in names:
        q, k, v = (tensors[f"{name}.{part}"] for part in "qkv")
        plan = core.plan(q, k, v, precision="auto", scale=scale, layout=layout)
        plan.run(q, k, v)
        heads = []
        batch, count = q.shape[0], q.shape[1 if layout == "bhsd" else 2]
        for b in range(batch):
            for h in range(count):
                head = plan.head(b, h)
                heads.append(
                    {
                        "batch": b,
                        "head": h,
                        "precision": head.precision,
                        "raises": head.raises,
                        "first_error": None if math.isnan(head.first_error) else head.first_error,
                        "last_error": None if math.isnan(head.last_error) else head.last_error,
                    }
                )
        layers.append({"layer": name, "file": path.name, "shape": list(q.shape), "layout": layout, "heads": heads})
    return layers


def text(layers: list[dict[str, Any]]) -> str:
    """A line for each layer."""
    lines = []
    for layer in layers:
        counts = Counter(head["precision"] for head in layer["heads"])
        chosen = ", ".join(f"{count} heads {precision}" for precision, count in counts.items())
        errors = [head["first_error"] for head in layer["heads"] if head["first_error"] is not None]
        error = f"; error sampled at int8 {min(errors):.2%} to {max(errors):.2%}" if errors else ""
        lines.append(f"{layer['layer']} {layer['shape']}: {chosen}{error}")
    return "\n".join(lines)
