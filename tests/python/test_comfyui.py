"""The custom node, against ComfyUI's function signatures: ComfyUI itself is on no registry.

What stands in for it follows comfy/ldm/modules/attention.py: names, order of arguments, layouts, the call of overrides.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import logging
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clary
import clary.torch
import oracle
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "bindings" / "comfyui" / "clary_attention"


def comfy_attention() -> types.ModuleType:
    """A module with what a custom node uses of ComfyUI's attention."""
    module = types.ModuleType("comfy.ldm.modules.attention")
    registered: dict[str, Callable[..., Any]] = {}

    def register_attention_function(name: str, func: Callable[..., Any]) -> None:
        if name in registered:
            logging.warning("already registered")
        else:
            registered[name] = func

    def wrap_attn(func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if "_inside_attn_wrapper" not in kwargs:
                options = kwargs.get("transformer_options")
                kwargs["_inside_attn_wrapper"] = True
                if options is not None and "optimized_attention_override" in options:
                    return options["optimized_attention_override"](func, *args, **kwargs)
            return func(*args, **kwargs)

        return wrapper

    @wrap_attn
    def attention_pytorch(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        heads: int,
        mask: torch.Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        if not skip_reshape:
            dim = q.shape[-1] // heads
            q, k, v = (x.reshape(x.shape[0], x.shape[1], -1, dim).transpose(1, 2) for x in (q, k, v))
        if mask is not None:
            mask = mask[None] if mask.ndim == 2 else mask
            mask = mask[:, None] if mask.ndim == 3 else mask
        extra = {name: kwargs[name] for name in ("scale", "enable_gqa") if name in kwargs}
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, **extra)
        return out if skip_output_reshape else out.transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)

    for value in (register_attention_function, wrap_attn, attention_pytorch):
        setattr(module, value.__name__, value)
    module.REGISTERED_ATTENTION_FUNCTIONS = registered  # type: ignore[attr-defined]  # made up here
    return module


class ModelPatcher:
    def __init__(self) -> None:
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> ModelPatcher:
        other = ModelPatcher()
        other.model_options = copy.deepcopy(self.model_options)
        return other


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = comfy_attention()
    for name in ("comfy", "comfy.ldm", "comfy.ldm.modules"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def node(comfy: types.ModuleType) -> Iterator[Any]:
    """The folder, loaded as ComfyUI loads it."""
    spec = importlib.util.spec_from_file_location("clary_attention", FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    clary.torch.reset_stats()
    yield module


def make(reshaped: bool, lq: int = 40, lk: int = 77, heads: int = 4, kv: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    sizes = (lq, heads), (lk, kv), (lk, kv)
    q, k, v = (torch.randn(2, length, count, 16, generator=generator) for length, count in sizes)
    return tuple(x.transpose(1, 2) if reshaped else x.flatten(2) for x in (q, k, v))


MASKS = [None, (40, 77), (2, 40, 77), (2, 4, 40, 77), (2, 1, 1, 77)]


@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("reshaped_out", [False, True])
def test_registered(comfy: Any, node: Any, shape: Any, reshaped: bool, reshaped_out: bool) -> None:
    inputs = make(reshaped)
    mask = None if shape is None else torch.randn(shape, generator=torch.Generator().manual_seed(9))
    arguments = {
        "mask": mask,
        "skip_reshape": reshaped,
        "skip_output_reshape": reshaped_out,
        "attn_precision": torch.float32,
        "scale": 0.4,
        "transformer_options": {},
    }
    function = comfy.REGISTERED_ATTENTION_FUNCTIONS["clary"]
    out = function(*inputs, 4, **arguments)
    expected = comfy.attention_pytorch(*inputs, 4, **arguments)
    assert clary.torch.stats() == clary.torch.Stats(taken=1, fallbacks={})
    assert out.shape == expected.shape
    assert oracle.errors(out, expected).l2 < 1e-5
    if mask is not None:
        unmasked = comfy.attention_pytorch(*inputs, 4, **{**arguments, "mask": None})
        assert oracle.errors(out, unmasked).l2 > 1e-2


def test_grouped_heads(comfy: Any, node: Any) -> None:
    inputs = make(False, kv=2)
    out = node.attention(*inputs, 4, enable_gqa=True)
    assert oracle.errors(out, comfy.attention_pytorch(*inputs, 4, enable_gqa=True)).l2 < 1e-5


def test_node(comfy: Any, node: Any) -> None:
    """A patched model calls Clary at the chosen precision; the model it was made of does not."""
    cls = node.NODE_CLASS_MAPPINGS["ClaryAttention"]
    inputs = cls.INPUT_TYPES()["required"]
    assert list(inputs) == ["model", "precision", "guard"] and inputs["precision"][0][0] == "auto"
    original = ModelPatcher()
    (patched,) = getattr(cls(), cls.FUNCTION)(original, "int8", 0.0)
    q, k, v = make(True, lq=64, lk=300)

    def run(model: ModelPatcher, **kwargs: Any) -> torch.Tensor:
        options = model.model_options["transformer_options"]
        return comfy.attention_pytorch(q, k, v, 4, None, skip_reshape=True, transformer_options=options, **kwargs)

    run(original)
    assert clary.torch.stats().taken == 0
    out = run(patched)
    assert clary.torch.stats() == clary.torch.Stats(taken=1, fallbacks={})
    assert torch.equal(out, clary.attention(q, k, v, precision="int8").transpose(1, 2).flatten(2))
    exact = clary.attention(q, k, v, precision="exact").transpose(1, 2).flatten(2)
    assert not torch.equal(out, exact)
    assert torch.equal(run(patched, low_precision_attention=False), exact)
    (guarded,) = cls().patch(original, "int8", 1e-5)
    assert torch.equal(run(guarded), exact)


def test_node_takes_every_precision(node: Any) -> None:
    q, k, v = make(True, lq=64, lk=300)
    for precision in node.PRECISIONS:
        out = node.attention(q, k, v, 4, skip_reshape=True, skip_output_reshape=True, precision=precision)
        assert torch.equal(out, clary.attention(q, k, v, precision=precision))


def test_unknown_arguments(comfy: Any, node: Any) -> None:
    inputs = make(False)
    with pytest.raises(TypeError, match="^causal: "):
        node.attention(*inputs, 4, causal=True)
    options = {"optimized_attention_override": node.override("exact", None)}
    with pytest.warns(clary.torch.FallbackWarning, match="argument causal"):
        out = comfy.attention_pytorch(*inputs, 4, causal=False, transformer_options=options)
    assert clary.torch.stats().taken == 0
    assert torch.equal(out, comfy.attention_pytorch(*inputs, 4))


def test_what_is_not_served(comfy: Any, node: Any) -> None:
    inputs = [x.double() for x in make(False)]
    with pytest.warns(clary.torch.FallbackWarning, match="float64"):
        out = node.attention(*inputs, 4)
    torch.testing.assert_close(out, comfy.attention_pytorch(*inputs, 4))
