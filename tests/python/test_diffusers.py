"""clary.diffusers: the backend, its masks, and context parallelism over two processes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clary
import clary.diffusers
import clary.torch
import oracle
import pytest
import torch
from clary._params import PRECISIONS
from diffusers import FluxTransformer2DModel
from diffusers.models import attention_dispatch as dispatch

NAMES = ["clary", *(f"clary:{precision}" for precision in PRECISIONS)]


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    clary.diffusers.install()
    # On models this small, threads wait for each other longer than they work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def active_backend() -> Iterator[None]:
    """set_attention_backend() changes that of the whole process, and reset_attention_backend() does not restore it."""
    registry = dispatch._AttentionBackendRegistry
    before, _ = registry.get_active_backend()
    yield
    registry.set_active_backend(before)


def make(b: int = 2, h: int = 3, lq: int = 17, lk: int = 23, d: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    shapes = (b, lq, h, d), (b, lk, h, d), (b, lk, h, d)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def call(*args: Any, backend: str = "clary:exact", **kwargs: Any) -> torch.Tensor:
    return dispatch.dispatch_attention_fn(*args, backend=backend, **kwargs)


def check(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs: Any) -> None:
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    expected, _ = oracle.attention(*heads_first, **kwargs)
    assert out.is_contiguous()
    assert oracle.errors(out.transpose(1, 2), expected).l2 < 2e-6
    for name in kwargs:
        without = {other: value for other, value in kwargs.items() if other != name}
        assert oracle.errors(out.transpose(1, 2), oracle.attention(*heads_first, **without)[0]).l2 > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    q, k, v = make(lq=64, lk=300)
    clary.torch.reset_stats()
    out = call(q, k, v, backend=name)
    precision = name.removeprefix("clary").removeprefix(":") or "auto"
    assert torch.equal(out, clary.attention(q, k, v, layout="bshd", precision=precision))
    assert clary.torch.stats().taken == 2
    assert dispatch.AttentionBackendName(name) is dispatch.AttentionBackendName[name.upper().replace(":", "_")]


def test_installed_twice_and_with_a_guard() -> None:
    members = len(dispatch.AttentionBackendName.__members__)
    clary.diffusers.install(guard=1e-5)
    try:
        assert len(dispatch.AttentionBackendName.__members__) == members
        call(*make(lq=64, lk=300), backend="clary:int8")
        assert "exact" in (clary.torch.last_plan() or "")
    finally:
        clary.diffusers.install()


def test_another_diffusers_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "AttentionBackendName", type("Names", (), {}))
    with pytest.raises(RuntimeError, match=r"diffusers 0\..*clary\.torch\.use\(\)"):
        clary.diffusers.install()


@pytest.mark.parametrize("shape", [(2, 23), (17, 23), (2, 17, 23), (2, 1, 1, 23), (1, 3, 17, 23)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_masks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = make()
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.3
    mask = seen if dtype == torch.bool else torch.zeros(shape).masked_fill(~seen, -torch.inf)
    full = seen[:, None, None] if shape == (2, 23) else seen[:, None] if len(shape) == 3 else seen
    check(call(q, k, v, attn_mask=mask), q, k, v, mask=full.numpy())


def test_causal_is_top_left_and_scale() -> None:
    q, k, v = make()
    check(call(q, k, v, is_causal=True, scale=0.6), q, k, v, causal="top_left", scale=0.6)


def test_grouped_heads() -> None:
    q, k, v = make(h=4)
    check(call(q, k[:, :, :2], v[:, :, :2], enable_gqa=True), q, k[:, :, :2], v[:, :, :2])


def test_lse() -> None:
    q, k, v = make()
    out, lse = call(q, k, v, attention_kwargs={"return_lse": True})
    expected, expected_lse = oracle.attention(*(x.transpose(1, 2) for x in (q, k, v)))
    assert oracle.errors(out.transpose(1, 2), expected).l2 < 2e-6
    assert lse.shape == (2, 17, 3)
    torch.testing.assert_close(lse.transpose(1, 2).double(), torch.from_numpy(expected_lse), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="return_lse.*dropout"):
        call(q, k, v, dropout_p=0.1, attention_kwargs={"return_lse": True})


def test_training_is_left_to_pytorch() -> None:
    q, k, v = make()
    q.requires_grad_()
    clary.torch.reset_stats()
    with pytest.warns(clary.torch.FallbackWarning, match="requires grad"):
        out = call(q, k, v)
    out.sum().backward()
    assert clary.torch.stats().taken == 0 and q.grad is not None


def test_a_model() -> None:
    """set_attention_backend, eager, compiled in one graph, copied and pickled; and back."""
    model, inputs = flux()
    with torch.no_grad():
        expected = model(**inputs).sample
        model.set_attention_backend("clary:exact")
        clary.torch.reset_stats()
        out = model(**inputs).sample
        assert clary.torch.stats() == clary.torch.Stats(taken=2, fallbacks={})
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).sample
        assert clary.torch.stats().taken == 4
        for other in (
            compiled,
            copy.deepcopy(model)(**inputs).sample,
            pickle.loads(pickle.dumps(model))(**inputs).sample,
        ):
            assert torch.equal(out, other)
        assert clary.torch.stats().taken == 8
    assert oracle.errors(out, expected).l2 < 2e-6
    model.set_attention_backend("native")
    with torch.no_grad():
        model(**inputs)
    assert clary.torch.stats().taken == 8


def flux() -> tuple[FluxTransformer2DModel, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    inputs = {
        "hidden_states": torch.randn(1, 36, 4),
        "encoder_hidden_states": torch.randn(1, 48, 32),
        "pooled_projections": torch.randn(1, 32),
        "img_ids": torch.randn(36, 3),
        "txt_ids": torch.randn(48, 3),
        "timestep": torch.ones(1),
    }
    return model.eval(), inputs


_PARALLEL = """
import sys
from types import SimpleNamespace
import clary.diffusers, torch
import torch.distributed as dist
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch.distributed.device_mesh import init_device_mesh

clary.diffusers.install()
rank, place = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
generator = torch.Generator().manual_seed(1)
q, k, v = (torch.randn(1, 80, 4, 16, generator=generator) for _ in range(3))
mask = torch.rand(1, 1, 1, 80, generator=generator) > 0.3
mine = slice(40 * rank, 40 * rank + 40)

def run(ring, ulysses, attn_mask=None, grad=False, backend="clary:exact"):
    config = SimpleNamespace(
        ring_degree=ring, ulysses_degree=ulysses, ring_anything=False, ulysses_anything=False, convert_to_fp32=True,
        _ring_mesh=mesh, _ulysses_mesh=mesh, _ring_local_rank=rank,
    )
    parts = [x[:, mine].clone().requires_grad_(grad) for x in (q, k, v)]
    return dispatch_attention_fn(
        *parts, attn_mask=attn_mask, backend=backend, parallel_config=SimpleNamespace(context_parallel_config=config)
    )

def whole(attn_mask=None):
    return dispatch_attention_fn(q, k, v, attn_mask=attn_mask, backend="clary:exact")[:, mine]

torch.testing.assert_close(run(2, 1), whole(), rtol=0, atol=2e-6)
torch.testing.assert_close(run(1, 2), whole(), rtol=0, atol=2e-6)
torch.testing.assert_close(run(1, 2, mask), whole(mask), rtol=0, atol=2e-6)
assert (whole(mask) - whole()).abs().max() > 1e-2
for attempt in (lambda: run(2, 1, mask), lambda: run(1, 2, grad=True).sum().backward()):
    try:
        attempt()
    except (ValueError, NotImplementedError) as error:
        print(type(error).__name__)
dist.destroy_process_group()
"""


def test_context_parallelism(tmp_path: Path) -> None:
    """Two processes, ring and Ulysses, equal one. Ring attention refuses masks, and nothing is differentiated."""
    command = [sys.executable, "-W", "ignore", "-c", _PARALLEL]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == ["ValueError\nNotImplementedError\n"] * 2
    assert all(name in dispatch._AttentionBackendRegistry._supports_context_parallel for name in NAMES)
