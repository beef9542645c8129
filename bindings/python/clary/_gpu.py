"""CUDA tensors of PyTorch: on the current stream of their device, with a workspace from PyTorch's allocator.

A call enqueues kernels and returns; it neither waits nor reads device memory, so it may be captured into a graph. What
the backend serves, and what of it has run where: docs/gpu.md.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref
from typing import Any

import numpy as np
import torch

from . import _arrays, core
from ._arrays import DType
from ._lib import check, lib
from ._params import LAYOUTS, Options
from .core import Extras

_CUDA = 2  # DLPack


def attention(
    q: Any, k: Any, v: Any, options: Options, extras: Extras, return_lse: bool, threads: int | None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What clary.attention() does with CUDA tensors.

    cu_seqlens on the device are not read: the whole length then bounds each sequence. Pass them as ints to tell more.

    Raises: as clary.attention(); TypeError where the library has no kernels for the device, or there is no driver.
    """
    if threads is not None:
        raise ValueError(f"threads: is {threads}, but has no meaning for CUDA tensors")
    device: torch.device = q.device
    views = [_view(name, tensor, device) for name, tensor in (("q", q), ("k", k), ("v", v))]
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    views.append(_view("out", out, device))
    lse = q.new_empty(_lse_shape(q, options), dtype=torch.float32) if return_lse else None
    views.append(_view("lse", lse, device) if lse is not None else None)
    params = options.params()
    kept = _attach(params, extras, device, (q, k), options)
    tensors = [None if view is None else byref(view) for view in views]
    needed = ctypes.c_size_t()
    check(lib.clary_cuda_workspace_bytes(*tensors, byref(params), byref(needed)))
    workspace = torch.empty(needed.value, dtype=torch.uint8, device=device)
    params.workspace, params.workspace_bytes = workspace.data_ptr() or None, needed.value
    params.stream = torch.cuda.current_stream(device).cuda_stream or None
    check(lib.clary_attention(*tensors, byref(params), None))
    del kept  # the allocator gives memory to later work of the same stream only
    return out if lse is None else (out, lse)


@functools.cache
def is_served(index: int) -> bool:
    """Whether the library has kernels for CUDA device `index`, and a driver."""
    views = [_arrays.tensor(None, (1, 1, 1, 64), None, _arrays.F16) for _ in range(4)]
    for view in views:
        view.device_type, view.device_id = _CUDA, index
    params = Options().params()
    status: int = lib.clary_cuda_workspace_bytes(*map(byref, views), None, byref(params), byref(ctypes.c_size_t()))
    return status == 0


def _view(name: str, tensor: Any, device: torch.device) -> Any:
    if not isinstance(tensor, torch.Tensor) or tensor.device != device:
        where = f"on {tensor.device}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        raise TypeError(f"{name}: is {where}, must be a tensor on {device} like q")
    dtype: DType = _arrays.Torch().dtype(name, tensor)
    view = _arrays.tensor(tensor.data_ptr() or None, tensor.shape, tensor.stride(), dtype)
    view.device_type, view.device_id = _CUDA, tensor.get_device()
    return view


def _lse_shape(q: torch.Tensor, options: Options) -> tuple[int, ...]:
    if q.dim() != 4:  # the library will say so
        return tuple(q.shape)
    heads, rows = (1, 2) if LAYOUTS[options.layout] == "bhsd" else (2, 1)
    return q.shape[0], q.shape[heads], q.shape[rows]


def _attach(
    params: Any, extras: Extras, device: torch.device, rows: tuple[torch.Tensor, torch.Tensor], options: Options
) -> list[Any]:
    """Points the parameters to the tensors of `extras`; returns what must live until the call is enqueued."""
    kept: list[Any] = []
    for name, tensor in extras.tensors().items():
        if tensor is not None:
            kept += [view := _view(name, tensor, device), tensor]
            setattr(params, name, ctypes.pointer(view))
    dimension = 2 if LAYOUTS[options.layout] == "bhsd" else 1
    for side, tensor in zip("qk", rows):
        lengths = getattr(extras, f"cu_seqlens_{side}")
        if lengths is not None and tensor.dim() == 4:
            ends, longest = _ends(f"cu_seqlens_{side}", lengths, tensor.shape[dimension], device)
            kept.append(ends)
            setattr(params, f"cu_seqlens_{side}", ends.data_ptr())
            setattr(params, f"max_len_{side}", longest)
            if params.num_sequences not in (0, len(ends) - 1):
                raise ValueError(f"cu_seqlens_{side}: has {len(ends)} entries, must have as many as cu_seqlens_q")
            params.num_sequences = len(ends) - 1
    return kept


def _ends(name: str, lengths: Any, total: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """int32 on the device, and a bound of the longest sequence."""
    if isinstance(lengths, torch.Tensor) and lengths.device == device:
        if lengths.dim() != 1 or lengths.dtype != torch.int32 or not lengths.is_contiguous() or len(lengths) == 0:
            raise TypeError(f"{name}: on {device} it must be a dense int32 vector of at least one entry")
        return lengths, total
    ends = core.cu_seqlens(name, lengths)
    steps = np.diff(ends)
    if ends[0] != 0 or ends[-1] != total or (steps < 0).any():
        raise ValueError(f"{name}: is {ends.tolist()}, must ascend from 0 to the length of the tensor, {total}")
    return torch.from_numpy(ends).to(device), int(steps.max(initial=0))
