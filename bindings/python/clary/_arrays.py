"""Arrays of the caller's libraries as memory: their place, sizes, strides and types; and new ones for results.

NumPy arrays, PyTorch tensors, anything with `__dlpack__` on the CPU, anything with the buffer protocol. Nothing is
copied.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import _lib, _params

if TYPE_CHECKING:
    import torch as torch_types

# What distinguishes arrays for a plan: sizes, strides (in the library's unit), dtype by DLPack's code and bits.
DType = tuple[int, int]
Key = tuple[tuple[int, ...], tuple[int, ...], DType]

F32, F16, BF16, F64, BOOL = (2, 32), (2, 16), (4, 16), (2, 64), (6, 8)


class Library(Protocol):
    """How arrays of one library are looked at and made."""

    name: str

    def look(self, name: str, array: Any) -> tuple[int, Key, Any]:
        """The address of the first element, the key, and what must live for as long as the address is used."""

    def strides(self, key: Key) -> tuple[int, ...]:
        """Strides in elements."""

    def empty(self, shape: tuple[int, ...], dtype: DType, like: Any) -> tuple[Any, int]:
        """A dense array and its address."""

    def astype(self, array: Any, dtype: DType) -> Any:
        """A copy in another type."""

    def result(self, array: Any, like: Any) -> Any:
        """What empty() made, in the type of the caller's array."""


def tensor(pointer: int | None, shape: Sequence[int], strides: Sequence[int] | None, dtype: DType) -> _lib.Tensor:
    """A clary_tensor on the CPU. strides None: dense."""
    ndim = len(shape)
    sizes = ctypes.c_int64 * ndim
    steps = None if strides is None else sizes(*strides)
    return _lib.Tensor(pointer, 1, 0, ndim, dtype[0], dtype[1], 1, sizes(*shape), steps, 0)


def library_of(name: str, array: Any) -> Library:
    """Raises: TypeError when `array` is none."""
    library = _libraries.get(type(array))
    if library is None:
        library = _find_library(name, array)
        _libraries[type(array)] = library
    return library


def require(library: Library, name: str, array: Any) -> None:
    """Raises: TypeError when `array` is not of that library."""
    other = library_of(name, array)
    if other is not library:
        raise TypeError(f"{name}: is {other.name}, must be {library.name} like q")


def _find_library(name: str, array: Any) -> Library:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: is a NumPy masked array, whose mask would be lost; pass its data and a mask")
    if isinstance(array, np.ndarray):
        return NUMPY
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        from .torch import LIBRARY  # the module puts itself around what is done with tensors

        return LIBRARY
    if hasattr(array, "__dlpack__"):
        return DLPACK
    try:
        memoryview(array)
    except TypeError:
        raise TypeError(
            f"{name}: is a {type(array).__name__}; allowed are NumPy arrays, PyTorch tensors, and what has __dlpack__ "
            "or the buffer protocol"
        ) from None
    return BUFFER


_NUMPY_DTYPES: dict[DType, np.dtype[Any]] = {F32: np.dtype("f4"), F16: np.dtype("f2"), F64: np.dtype("f8")}


class Numpy:
    name = "a NumPy array"

    def __init__(self) -> None:
        self._dtypes: dict[np.dtype[Any], DType] = {np.dtype(np.bool_): BOOL}
        for kind, code in (("i", 0), ("u", 1), ("f", 2)):
            for size in (1, 2, 4, 8):
                if kind != "f" or size > 1:
                    self._dtypes[np.dtype(f"{kind}{size}")] = (code, 8 * size)

    def look(self, name: str, array: Any) -> tuple[int, Key, Any]:
        dtype = self._dtypes.get(array.dtype) or self._learn(name, array.dtype)
        address = array.ctypes.data
        if address * 8 % dtype[1]:
            raise ValueError(f"{name}: its data are not aligned to its elements of {dtype[1] // 8} bytes")
        return address, (array.shape, array.strides, dtype), array

    def strides(self, key: Key) -> tuple[int, ...]:
        item = key[2][1] // 8
        return tuple(step // item for step in key[1])

    def empty(self, shape: tuple[int, ...], dtype: DType, like: Any) -> tuple[Any, int]:
        array = np.empty(shape, self.dtype(dtype))
        return array, array.ctypes.data

    def astype(self, array: Any, dtype: DType) -> Any:
        return array.astype(self.dtype(dtype))

    def result(self, array: Any, like: Any) -> Any:
        return array

    @staticmethod
    def dtype(dtype: DType) -> np.dtype[Any]:
        if dtype == BF16:
            import ml_dtypes  # NumPy has no bfloat16 of its own: who has such an array has this package

            bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        return _NUMPY_DTYPES[dtype]

    def _learn(self, name: str, dtype: np.dtype[Any]) -> DType:
        if dtype.name == "bfloat16":
            self._dtypes[dtype] = BF16
            return BF16
        if not dtype.isnative:
            raise TypeError(f"{name}: is byte-swapped ({dtype.str}); pass {name}.astype({dtype.name!r})")
        raise TypeError(f"{name}: is {dtype.name}, allowed are float32, float16 and bfloat16")


class Buffer(Numpy):
    """What has the buffer protocol and nothing better: seen as NumPy arrays, results are memoryviews."""

    name = "an object with the buffer protocol"

    def look(self, name: str, array: Any) -> tuple[int, Key, Any]:
        try:
            seen = np.asarray(memoryview(array))
        except (ValueError, TypeError, RuntimeError) as error:
            raise TypeError(f"{name}: its buffer is of no type that is served ({error})") from None
        return super().look(name, seen)

    def astype(self, array: Any, dtype: DType) -> Any:
        return np.asarray(array).astype(self.dtype(dtype))

    def result(self, array: Any, like: Any) -> Any:
        return memoryview(array)


class Dlpack(Numpy):
    """Libraries of which nothing but DLPack is known, such as JAX."""

    name = "an array with __dlpack__"

    def look(self, name: str, array: Any) -> tuple[int, Key, Any]:
        if isinstance(array, np.ndarray):  # what astype() made
            return super().look(name, array)
        if array.__dlpack_device__()[0] != 1:
            raise TypeError(f"{name}: is on DLPack device {array.__dlpack_device__()}, only the CPU (1, 0) is served")
        capsule = array.__dlpack__()
        view = ctypes.cast(_capsule_pointer(capsule, b"dltensor"), ctypes.POINTER(_lib.Tensor)).contents
        shape = tuple(view.shape[: view.ndim])
        steps = tuple(view.strides[: view.ndim]) if view.strides else _dense(shape)
        address = (view.data or 0) + view.byte_offset
        return address, (shape, steps, (view.dtype_code, view.dtype_bits)), capsule

    def strides(self, key: Key) -> tuple[int, ...]:
        return key[1]

    def astype(self, array: Any, dtype: DType) -> Any:
        return array.__array_namespace__().astype(array, self.dtype(dtype))

    def result(self, array: Any, like: Any) -> Any:
        if not hasattr(like, "__array_namespace__"):
            return array
        return like.__array_namespace__().asarray(array)


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        steps[i] = steps[i + 1] * max(shape[i + 1], 1)
    return tuple(steps)


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class Torch:
    name = "a PyTorch tensor"
    _only: Torch | None = None

    def __new__(cls) -> Torch:
        if cls._only is None:
            cls._only = super().__new__(cls)
            cls._only._set_up()
        return cls._only

    def _set_up(self) -> None:
        import torch

        self._torch = torch
        self._dtypes: dict[torch_types.dtype, DType] = {
            torch.float32: F32,
            torch.float16: F16,
            torch.bfloat16: BF16,
            torch.float64: F64,
            torch.bool: BOOL,
            torch.uint8: (1, 8),
            torch.int8: (0, 8),
            torch.int16: (0, 16),
            torch.int32: (0, 32),
            torch.int64: (0, 64),
        }
        self._back = {code: dtype for dtype, code in self._dtypes.items()}
        self._strided = torch.strided
        _params.is_compiling = torch.compiler.is_compiling

    def look(self, name: str, array: Any) -> tuple[int, Key, Any]:
        if not array.is_cpu:
            raise TypeError(f"{name}: is on device {array.device}, must be on the cpu like q")
        dtype = self.dtype(name, array)
        if array.is_neg():  # a lazy minus sign that the memory does not show
            array = array.resolve_neg()
        return array.data_ptr(), (array.shape, array.stride(), dtype), array

    def dtype(self, name: str, array: Any) -> DType:
        """Raises: TypeError for tensors without strides, and for dtypes that DLPack does not know."""
        dtype = self._dtypes.get(array.dtype)
        if dtype is not None and array.layout is self._strided:
            return dtype
        if array.layout is not self._strided:
            raise TypeError(f"{name}: has layout {array.layout}, must be strided")
        if array.is_quantized:
            raise TypeError(f"{name}: is quantized ({array.dtype}); pass its values, dequantized")
        raise TypeError(f"{name}: is {array.dtype}, allowed are torch.float32, torch.float16 and torch.bfloat16")

    def strides(self, key: Key) -> tuple[int, ...]:
        return key[1]

    def empty(self, shape: tuple[int, ...], dtype: DType, like: Any) -> tuple[Any, int]:
        array = (
            like.new_empty(shape)
            if self._dtypes[like.dtype] == dtype
            else like.new_empty(shape, dtype=self._back[dtype])
        )
        return array, array.data_ptr()

    def astype(self, array: Any, dtype: DType) -> Any:
        return array.to(self._back[dtype])

    def result(self, array: Any, like: Any) -> Any:
        return array


NUMPY, BUFFER, DLPACK = Numpy(), Buffer(), Dlpack()
_libraries: dict[type, Library] = {np.ndarray: NUMPY, np.memmap: NUMPY}
