"""How CUDA tensors are handed over, on machines without a GPU.

The library behind the calls is a stand-in that computes on the CPU, and CPU tensors stand for those in device memory.
Kernels are not tested here.
"""

from __future__ import annotations

import ctypes
import importlib.util
import pathlib
import sys
import types

import clary
import numpy as np
import oracle
import pytest
import torch
from clary import _context, _gpu, _lib, _params, core
from clary.core import Extras
from conftest import qkv

DEVICE = types.SimpleNamespace(index=3)
STREAM, WORKSPACE = 0x5000, 1 << 12


class StandIn:
    """The two functions of the C interface. Checks what only a GPU call has, then computes on the CPU."""

    def __init__(self) -> None:
        self.context = _context.Context(1)
        self.asked = self.called = 0

    def clary_cuda_workspace_bytes(self, q, k, v, out, lse, params, needed):
        self.asked += 1
        needed._obj.value = WORKSPACE
        return 0

    def clary_attention(self, q, k, v, out, lse, params, context):
        self.called += 1
        p = params._obj
        assert context is None and p.stream == STREAM and p.workspace and p.workspace_bytes == WORKSPACE
        pointers = [p.mask, p.alibi_slopes, p.sinks]
        views = [x._obj for x in (q, k, v, out, lse) if x is not None] + [x.contents for x in pointers if x]
        for view in views:
            assert (view.device_type, view.device_id) == (2, 3)
            view.device_type, view.device_id = 1, 0
        self.longest = (p.max_len_q, p.max_len_k)
        p.stream = p.workspace = None
        p.workspace_bytes = p.max_len_q = p.max_len_k = 0
        return _lib.lib.clary_attention(q, k, v, out, lse, params, self.context.handle)


@pytest.fixture
def library(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(_gpu, "lib", stand_in)
    stream = types.SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    view = _gpu._view

    def view_on_gpu(name, tensor, device):
        seen = view(name, tensor, torch.device("cpu"))
        seen.device_id = DEVICE.index
        return seen

    monkeypatch.setattr(_gpu, "_view", view_on_gpu)
    return stand_in


def run(tensors, extras=core.NO_EXTRAS, return_lse=False, threads=None, **arguments):
    values = {"layout": "bhsd", "precision": "exact", "causal": False, "scale": None, "softcap": 0.0, "window": None}
    values |= {"guard": None, "guard_rows": 16, **arguments}
    options = _params.options(*(values[name] for name in (
        "layout", "precision", "causal", "scale", "softcap", "window", "guard", "guard_rows"
    )))  # fmt: skip
    return _gpu.attention(*tensors, options, extras, return_lse, threads)


def test_a_call_with_everything(library, rng):
    arrays = qkv(rng)
    mask, slopes, sinks = rng.random((2, 1, 37, 53)) < 0.6, np.ones(4, np.float32) / 8, np.ones(4, np.float32)
    extras = Extras(*map(torch.from_numpy, (mask, slopes, sinks)))
    arguments = {"causal": "bottom_right", "window": (20, -1), "softcap": 5.0, "scale": 0.2}
    out, lse = run(list(map(torch.from_numpy, arrays)), extras, True, **arguments)
    expected, expected_lse = oracle.attention(*arrays, mask=mask, alibi_slopes=slopes, sinks=sinks, **arguments)
    assert oracle.errors(out, expected).l2 < 2e-6 and np.abs(lse.numpy() - expected_lse).max() < 1e-5
    assert library.asked == library.called == 1


def test_layouts_and_types(library, rng):
    for dtype, bound in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        tensors = [torch.from_numpy(x).to(dtype) for x in qkv(rng)]
        swapped = [x.transpose(1, 2).contiguous() for x in tensors]
        out, lse = run(swapped, return_lse=True, layout="bshd")
        assert out.shape == (2, 37, 4, 16) and out.dtype == dtype and lse.shape == (2, 4, 37)
        assert oracle.errors(out.transpose(1, 2), oracle.attention(*tensors)[0]).l2 < bound


def test_varlen(library, rng):
    tensors = [torch.from_numpy(x) for x in qkv(rng, b=1, lq=30, lk=41)]
    for lengths in (list, np.array):
        out = run(tensors, Extras(cu_seqlens_q=lengths([0, 5, 30]), cu_seqlens_k=lengths([0, 9, 41])))
        part = tensors[0][:, :, 5:], tensors[1][:, :, 9:], tensors[2][:, :, 9:]
        assert oracle.errors(out[:, :, 5:], oracle.attention(*part)[0]).l2 < 2e-6
        assert library.longest == (25, 32)
    for wrong, words in (([0, 5], "to the length of the tensor, 30"), ([0, 9, 5, 30], "must ascend")):
        with pytest.raises(ValueError, match=f"cu_seqlens_q: .*{words}"):
            run(tensors, Extras(cu_seqlens_q=wrong, cu_seqlens_k=[0, 9, 41]))
    with pytest.raises(ValueError, match="cu_seqlens_k: has 2 entries"):
        run(tensors, Extras(cu_seqlens_q=[0, 5, 30], cu_seqlens_k=[0, 41]))


def test_what_is_refused(library, rng):
    tensors = [torch.from_numpy(x) for x in qkv(rng)]
    with pytest.raises(ValueError, match="threads: is 2, but has no meaning for CUDA tensors"):
        run(tensors, threads=2)
    with pytest.raises(ValueError, match="q: has 3 dimensions"):
        run([tensors[0][0], *tensors[1:]])
    with pytest.raises(ValueError, match="mask: dimension Lk is 52"):
        run(tensors, Extras(mask=torch.ones(37, 52, dtype=torch.bool)))


def test_devices_that_do_not_fit_together(rng):
    q, k, _ = (torch.from_numpy(x) for x in qkv(rng))
    with pytest.raises(TypeError, match="k: is on meta, must be a tensor on cpu like q"):
        _gpu._view("k", k.to("meta"), q.device)
    with pytest.raises(TypeError, match="mask: is a ndarray, must be a tensor on cpu like q"):
        _gpu._view("mask", k.numpy(), q.device)
    for wrong in (
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(4, dtype=torch.int32)[::2],
        torch.zeros(0, dtype=torch.int32),
    ):
        with pytest.raises(TypeError, match="cu_seqlens_q: on cpu it must be a dense int32 vector"):
            _gpu._ends("cu_seqlens_q", wrong, 1, q.device)
    ends = torch.tensor([0, 1], dtype=torch.int32)
    assert _gpu._ends("cu_seqlens_q", ends, 9, q.device) == (ends, 9)


def test_without_a_gpu_the_library_says_so():
    """The library as it is: built without CUDA kernels, or on a machine without a driver."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert not _gpu.is_served(0)
    needed, params = ctypes.c_size_t(), _params.Options().params()
    view = core._arrays.tensor(None, (1, 1, 1, 64), None, core._arrays.F16)
    view.device_type = 2
    with pytest.raises(TypeError, match=r"q: is on device_type 2 \(CUDA\)"):
        _lib.check(
            _lib.lib.clary_cuda_workspace_bytes(
                *[ctypes.byref(view)] * 4, None, ctypes.byref(params), ctypes.byref(needed)
            )
        )


def script():
    """tools/gpu_python.py as a module: what is checked where there is a GPU, here on the CPU."""
    path = pathlib.Path(__file__).parents[2] / "tools/gpu_python.py"
    spec = importlib.util.spec_from_file_location("gpu_python", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_checks_of_a_gpu_hold_on_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_python.py", "cpu"])
    with pytest.raises(SystemExit) as end:
        script().main()
    assert end.value.code == 0 and "6 right, 0 wrong" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["precisions", "features", "varlen", "compile", "refusals"])
def test_the_checks_of_a_gpu_notice_wrong_results(monkeypatch, name):
    attention = clary.attention

    def wrong(*arguments, **options):
        result = attention(*arguments, **options)
        return (result[0] * 1.5, result[1]) if isinstance(result, tuple) else result * 1.5

    monkeypatch.setattr(clary, "attention", wrong)
    with pytest.raises(AssertionError):
        getattr(script(), f"check_{name}")(torch.device("cpu"))
