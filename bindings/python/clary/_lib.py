"""The C interface of Clary (include/clary/clary.h) in ctypes: structs, functions, and errors as exceptions.

Calls through `ctypes.CDLL` release the GIL. Nothing here knows about arrays of any library.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
from collections.abc import Collection
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint16,
    c_uint64,
    c_void_p,
)
from typing import Any


class Error(Exception):
    """Clary could not serve a call that is well formed: no memory, an instruction set this CPU lacks, a defect."""


class Tensor(ctypes.Structure):
    """clary_tensor: DLPack's DLTensor, field for field."""

    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("dtype_code", c_uint8),
        ("dtype_bits", c_uint8),
        ("dtype_lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class AttentionParams(ctypes.Structure):
    """clary_attention_params."""

    _fields_ = [
        ("size", c_size_t),
        ("layout", c_int),
        ("precision", c_int),
        ("causal", c_int),
        ("causal_offset", c_int64),
        ("softmax_scale", c_double),
        ("softcap", c_double),
        ("window_left", c_int64),
        ("window_right", c_int64),
        ("mask", POINTER(Tensor)),
        ("alibi_slopes", POINTER(Tensor)),
        ("sinks", POINTER(Tensor)),
        ("cu_seqlens_q", c_void_p),
        ("cu_seqlens_k", c_void_p),
        ("num_sequences", c_int64),
        ("guard", c_double),
        ("guard_rows", c_int32),
        ("stream", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
        ("max_len_q", c_int64),
        ("max_len_k", c_int64),
    ]


class ContextOptions(ctypes.Structure):
    """clary_context_options."""

    _fields_ = [
        ("size", c_size_t),
        ("threads", c_int32),
        ("parallel_for", c_void_p),
        ("parallel_user", c_void_p),
        ("allocate", c_void_p),
        ("release", c_void_p),
        ("allocator_user", c_void_p),
        ("isa", c_char_p),
    ]


class PlanInfo(ctypes.Structure):
    """clary_plan_info."""

    _fields_ = [
        ("size", c_size_t),
        ("isa", c_char_p),
        ("precision", c_int),
        ("start", c_int),
        ("tiles_skipped", c_int64),
        ("tiles_full", c_int64),
        ("tiles_partial", c_int64),
        ("flops", c_double),
        ("bytes_moved", c_double),
        ("bytes_lower_bound", c_double),
        ("workspace_bytes", c_double),
        ("work_items", c_int64),
        ("key_splits", c_int64),
    ]


class HeadInfo(ctypes.Structure):
    """clary_head_info."""

    _fields_ = [
        ("size", c_size_t),
        ("precision", c_int),
        ("raises", c_int32),
        ("first_error", c_double),
        ("last_error", c_double),
    ]


def library_path() -> pathlib.Path:
    """CLARY_LIBRARY where it is set (a build of one's own), else the library of the wheel."""
    path = pathlib.Path(os.environ.get("CLARY_LIBRARY") or pathlib.Path(__file__).parent / "libclary.so")
    if not path.exists():
        raise ImportError(f"clary: there is no library at {path}; install the package with pip, or set CLARY_LIBRARY")
    return path


def declare(library: ctypes.CDLL, names: Collection[str] | None = None) -> ctypes.CDLL:
    """Gives functions their types, all or those of `names`. Raises: AttributeError when one is missing."""
    tensor, context, plan, params = POINTER(Tensor), c_void_p, c_void_p, POINTER(AttentionParams)
    tensors = POINTER(tensor)
    functions: dict[str, tuple[Any, list[Any]]] = {
        "last_error": (c_char_p, []),
        "version": (c_char_p, []),
        "attention_params_init": (None, [params]),
        "context_options_init": (None, [POINTER(ContextOptions)]),
        "context_create": (c_int, [POINTER(ContextOptions), POINTER(context)]),
        "context_destroy": (None, [context]),
        "context_isa": (c_char_p, [context]),
        "context_workspace_bytes": (c_size_t, [context]),
        "attention": (c_int, [tensor, tensor, tensor, tensor, tensor, params, context]),
        "cuda_workspace_bytes": (c_int, [tensor, tensor, tensor, tensor, tensor, params, POINTER(c_size_t)]),
        "plan_create": (c_int, [tensor, tensor, tensor, tensor, tensor, params, context, POINTER(plan)]),
        "plan_run": (c_int, [plan, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]),
        "plan_destroy": (None, [plan]),
        "plan_get_info": (c_int, [plan, POINTER(PlanInfo)]),
        "plan_get_head": (c_int, [plan, c_int64, c_int64, POINTER(HeadInfo)]),
        "plan_describe": (c_size_t, [plan, c_char_p, c_size_t]),
        "merge": (c_int, [tensors, tensors, c_int64, c_int, tensor, tensor, context]),
        "isa_count": (c_int, []),
        "isa_name": (c_char_p, [c_int]),
        "isa_supported": (c_int, [c_int]),
        "cpu_name": (c_char_p, []),
        "measure_peak": (c_int, [c_char_p, c_int, c_double, POINTER(c_double)]),
    }
    for name in functions if names is None else names:
        result, arguments = functions[name]
        function = getattr(library, "clary_" + name)
        function.restype, function.argtypes = result, arguments
    return library


lib = declare(ctypes.CDLL(str(library_path())))

_INVALID_ARGUMENT, _UNSUPPORTED = 1, 2


def check(status: int, unsupported: type[Exception] = TypeError) -> None:
    """Raises what a clary_status stands for, with the reason that the library gives.

    Raises: ValueError for a wrong argument, `unsupported` for what is not served (of tensors: their dtype or device),
    Error otherwise.
    """
    if status == 0:
        return
    kinds: dict[int, type[Exception]] = {_INVALID_ARGUMENT: ValueError, _UNSUPPORTED: unsupported}
    raise kinds.get(status, Error)(text(lib.clary_last_error()))


def text(value: bytes | None) -> str:
    """A string of the C interface."""
    return "" if value is None else value.decode()


def measure_peak(isa: str, what: int, seconds: float) -> float:
    """clary_measure_peak: GOP/s, or GB/s for reads."""
    result = c_double()
    check(lib.clary_measure_peak(isa.encode(), what, seconds, byref(result)))
    return result.value
