"""Arrays of every library and shape in memory: what is served without a copy, what comes back, what is refused."""

from __future__ import annotations

import array
import ctypes

import clary
import ml_dtypes
import numpy as np
import oracle
import pytest
import torch
from conftest import qkv


def same(out: object, arrays: object, bound: float = 2e-6) -> bool:
    return oracle.errors(out, oracle.attention(*arrays)[0]).l2 <= bound


def test_strides_of_any_kind(rng):
    q, k, v = qkv(rng)
    packed = rng.standard_normal((2, 37, 3, 4, 24), dtype=np.float32)  # one QKV tensor, [B, L, 3, H, D]
    views = [packed[:, :, i].swapaxes(1, 2) for i in range(3)]
    assert same(clary.attention(*views, precision="exact"), views)
    for reverse in (np.s_[::-1], np.s_[:, ::-1], np.s_[:, :, ::-1]):
        views = [x[reverse] for x in (q, k, v)]
        assert min(views[0].strides) < 0
        assert same(clary.attention(*views, precision="exact"), views)
    broadcast = [np.broadcast_to(x[:1], x.shape) for x in (q, k, v)]
    assert same(clary.attention(*broadcast, precision="exact"), broadcast)
    odd = [x[:, :, 1::3] for x in (q, k, v)]
    assert same(clary.attention(*odd, precision="exact"), odd)
    mapped = [x.view(np.memmap) for x in (q, k, v)]
    assert type(clary.attention(*mapped)) is np.ndarray


def test_read_only_arrays_are_inputs(rng):
    arrays = qkv(rng)
    for x in arrays:
        x.flags.writeable = False
    assert same(clary.attention(*arrays, precision="exact"), arrays)


def test_inputs_are_not_written_and_results_are_new(rng):
    arrays = qkv(rng)
    before = [x.copy() for x in arrays]
    first, second = clary.attention(*arrays), clary.attention(*arrays)
    assert not np.shares_memory(first, second)
    assert all(np.array_equal(x, y) for x, y in zip(arrays, before))


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (lambda x: x.astype(">f4"), TypeError, "q: is byte-swapped"),
        (lambda x: x.astype(np.float64), TypeError, "q: is float64; pass downcast=True"),
        (lambda x: x.astype(np.int32), TypeError, "q: dtype .* is not served; allowed are f32, f16 and bf16"),
        (lambda x: x.astype(np.complex64), TypeError, "q: is complex64, allowed are"),
        (lambda x: x.astype(object), TypeError, "q: is object, allowed are"),
        (lambda x: np.ma.masked_array(x, x > 0), TypeError, "q: is a NumPy masked array"),
        (lambda x: x.swapaxes(2, 3), ValueError, "q: stride of the last dimension is"),
        (lambda x: x[..., ::2], ValueError, "q: stride of the last dimension is 2"),
        (lambda x: x[..., ::-1], ValueError, "q: stride of the last dimension is -1"),
        (lambda x: np.frombuffer(b"\0" * (x.nbytes + 1), np.uint8)[1:].view(np.float32).reshape(x.shape), ValueError,
         "q: its data are not aligned"),
        (lambda x: x[0], ValueError, "q: has 3 dimensions, allowed are 4 to 4"),
        (lambda x: x[None], ValueError, "q: has 5 dimensions"),
        (lambda x: x.tolist(), TypeError, "q: is a list; allowed are NumPy arrays, PyTorch tensors"),
        (lambda x: None, TypeError, "q: is a NoneType"),
        (lambda x: torch.from_numpy(x), TypeError, "k: is a NumPy array, must be a PyTorch tensor like q"),
        (lambda x: torch.from_numpy(x).to("meta"), TypeError, "q: is on device meta"),
    ],
)  # fmt: skip
def test_arrays_that_are_refused(spoil, kind, words, rng):
    q, k, v = qkv(rng)
    with pytest.raises(kind, match=words):
        clary.attention(spoil(q), k, v)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x.to("meta"), "q: is on device meta, served are cpu and cuda"),
        (lambda x: x.to_sparse(), "q: has layout torch.sparse_coo, must be strided"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "q: is quantized"),
        (lambda x: x.double(), "q: is float64; pass downcast=True"),
        (lambda x: x.to(torch.complex64), "q: is torch.complex64, allowed are torch.float32"),
        (lambda x: x.to(torch.float8_e4m3fn), "q: is torch.float8_e4m3fn, allowed are"),
        (lambda x: x.to(torch.int16), "q: dtype .* is not served"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(spoil, words, rng):
    q, k, v = (torch.from_numpy(x) for x in qkv(rng))
    with pytest.raises(TypeError, match=words):
        clary.attention(spoil(q), k, v)


def test_a_lazy_minus_sign_is_seen(rng):
    q, k, v = (torch.from_numpy(x) for x in qkv(rng))
    conjugate = torch.complex(torch.zeros_like(q).transpose(2, 3), q.transpose(2, 3)).transpose(2, 3).conj()
    dense = torch.view_as_real(torch.complex(q, q))[..., 0].contiguous()
    negative = torch._neg_view(dense)
    assert conjugate.imag.is_neg() and negative.is_neg()
    np.testing.assert_array_equal(clary.attention(negative, k, v).numpy(), clary.attention(-q, k, v).numpy())


def test_buffers(rng):
    arrays = qkv(rng, b=1)
    out = clary.attention(*(memoryview(x) for x in arrays), precision="exact")
    assert type(out) is memoryview and same(np.asarray(out), arrays)
    with pytest.raises(ValueError, match="q: has 1 dimensions"):
        clary.attention(array.array("f", [1, 2]), memoryview(arrays[1]), memoryview(arrays[2]))
    nested = (ctypes.c_float * 24 * 37 * 4 * 1).from_buffer_copy(arrays[0].tobytes())
    out = clary.attention(nested, *(ctypes_of(x) for x in arrays[1:]), precision="exact")
    assert same(np.asarray(out), arrays)


def ctypes_of(x: np.ndarray) -> object:
    kind: type = ctypes.c_float
    for size in reversed(x.shape):
        kind = kind * size
    return kind.from_buffer_copy(x.tobytes())


class Foreign:
    """An array of a library of which nothing but DLPack is known."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def __dlpack__(self, **arguments: object) -> object:
        return self._values.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class OnGpu(Foreign):
    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def test_dlpack(rng):
    arrays = qkv(rng)
    for dtype, bound in ((torch.float32, 2e-6), (torch.float16, 6e-4)):
        tensors = [torch.from_numpy(x).to(dtype) for x in arrays]
        strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
        out = clary.attention(*(Foreign(x) for x in strided), precision="exact")
        assert same(out, tensors, bound)
    with pytest.raises(TypeError, match=r"q: is on DLPack device \(2, 0\), only the CPU"):
        clary.attention(*(OnGpu(x) for x in tensors))


def test_jax(rng):
    jax = pytest.importorskip("jax")
    arrays = qkv(rng)
    for dtype, bound in (("float32", 2e-6), ("bfloat16", 4e-3)):
        given = [jax.numpy.asarray(x, dtype) for x in arrays]
        out, lse = clary.attention(*given, precision="exact", return_lse=True)
        assert isinstance(out, jax.Array) and isinstance(lse, jax.Array) and out.dtype == dtype
        assert same(np.asarray(out), [np.asarray(x) for x in given], bound)
    mask = jax.numpy.asarray(np.tril(np.ones((37, 53), bool)))
    masked = clary.attention(*given, mask=mask, precision="exact")
    assert oracle.errors(masked, oracle.attention(*map(np.asarray, given), mask=np.asarray(mask))[0]).l2 < 4e-3
    with pytest.raises(Exception, match="[Tt]rac"):
        jax.jit(clary.attention)(*given)


def test_bfloat16_arrays_of_numpy(rng):
    arrays = [x.astype(ml_dtypes.bfloat16) for x in qkv(rng)]
    out = clary.attention(*arrays, precision="exact")
    assert out.dtype == ml_dtypes.bfloat16 and same(out, arrays, 4e-3)
