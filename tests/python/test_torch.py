"""The operators under every way PyTorch has of looking at a program, and diverting scaled_dot_product_attention."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import warnings

import clary
import clary.torch
import oracle
import pytest
import torch
import torch.nn.functional as F
from clary._params import Options
from conftest import qkv
from torch.nn.functional import scaled_dot_product_attention as imported_by_name


@pytest.fixture
def tensors(rng):
    return [torch.from_numpy(x) for x in qkv(rng, hkv=4)]


@pytest.fixture(autouse=True)
def counted():
    torch._dynamo.reset()
    clary.torch.reset_stats()


def close(out: torch.Tensor, expected: torch.Tensor, bound: float = 2e-6) -> bool:
    return out.shape == expected.shape and oracle.errors(out, expected).l2 <= bound


# ---- the operators -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attention", "attention_lse"])
def test_opcheck(name, tensors):
    mask, slopes, sinks = torch.rand(37, 53) < 0.5, torch.rand(4), torch.rand(4)
    operator = getattr(torch.ops.clary, name).default
    for layout, extras in ((0, (None,) * 5), (1, (None,) * 5), (0, (mask, slopes, sinks, None, None))):
        given = [x.transpose(1, 2) if layout else x for x in tensors]
        torch.library.opcheck(operator, (*given, *extras, *Options(layout=layout, precision=3), 1))
    bf16 = [x.bfloat16() for x in tensors]
    torch.library.opcheck(operator, (*bf16, *(None,) * 5, *Options(scale=0.5), None))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_has_no_graph_break(dynamic, tensors):
    def model(q, k, v, mask):
        out, lse = clary.attention(
            q, k, v, mask=mask, causal="bottom_right", precision="int8", return_lse=True, softcap=5
        )
        return out * 2, lse + 1

    mask = torch.rand(37, 53) < 0.7
    expected = model(*tensors, mask)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for a, b in zip(compiled(*tensors, mask), expected):
        torch.testing.assert_close(a, b)
    longer = [torch.cat([x, x], 2) for x in tensors]
    torch.testing.assert_close(compiled(*longer, mask.repeat(2, 2))[0], model(*longer, mask.repeat(2, 2))[0])


def test_compile_of_sdpa_and_use(tensors):
    expected = F.scaled_dot_product_attention(*tensors)

    def direct(q, k, v):
        return clary.torch.sdpa(q, k, v, precision="exact") * 1

    def inside(q, k, v):
        with clary.torch.use(precision="exact"):
            return imported_by_name(q, k, v) * 1

    def plain(q, k, v):
        return F.scaled_dot_product_attention(q, k, v) * 1

    for model in (direct, inside):
        assert close(torch.compile(model, fullgraph=True)(*tensors), expected)
    assert clary.torch.stats().taken == 2
    with clary.torch.use(precision="exact"):
        assert close(torch.compile(plain, fullgraph=True)(*tensors), expected)
    assert clary.torch.stats().taken == 3


def test_the_first_call_of_a_process_may_be_compiled():
    code = """
import clary, torch
x = torch.randn(1, 2, 40, 16)
out = torch.compile(lambda x: clary.attention(x, x, x, precision="exact"), fullgraph=True)(x)
assert torch.allclose(out, torch.nn.functional.scaled_dot_product_attention(x, x, x), atol=1e-5)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_export(tensors):
    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return clary.attention(q, k, v, precision="exact", threads=1)

    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(Model(), tuple(tensors), dynamic_shapes=(None, {2: length}, {2: length}))
    assert "clary.attention" in str(program.graph)
    q, k, v = tensors
    for n in (53, 20):
        assert close(program.module()(q, k[:, :, :n], v[:, :, :n]), clary.attention(q, k[:, :, :n], v[:, :, :n]))


def test_fake_tensors_and_traces(tensors):
    mode = torch._subclasses.FakeTensorMode()
    with mode:
        fake = [mode.from_tensor(x) for x in tensors]
        out, lse = clary.attention(*fake, return_lse=True)
    assert out.shape == (2, 4, 37, 16) and lse.shape == (2, 4, 37) and lse.dtype == torch.float32
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda q, k, v: clary.attention(q, k, v))(*tensors)
    assert "clary.attention" in graph.code
    traced = torch.jit.trace(lambda q, k, v: clary.attention(q, k, v, precision="exact"), tensors)
    other = [x * 2 for x in tensors]
    assert close(traced(*other), F.scaled_dot_product_attention(*other))


def test_vmap_says_what_to_do(tensors):
    with pytest.raises(NotImplementedError, match="clary::attention has no batching rule for torch.vmap: .*fold"):
        torch.vmap(clary.attention)(*(x[None] for x in tensors))


def test_gradients_are_refused(tensors):
    q, k, v = tensors
    mask = torch.zeros(37, 53, requires_grad=True)
    for name, arguments in (("q", (q.clone().requires_grad_(), k, v)), ("v", (q, k, v.clone().requires_grad_()))):
        with pytest.raises(ValueError, match=f"{name}: requires grad, but Clary computes the forward pass only"):
            clary.attention(*arguments)
        with torch.no_grad():
            assert not clary.attention(*arguments).requires_grad
        with torch.inference_mode():
            clary.attention(*arguments)
    with pytest.raises(ValueError, match="mask: requires grad"):
        clary.attention(q, k, v, mask=mask)


def test_subclasses_and_parameters(tensors):
    class Marked(torch.Tensor):
        pass

    expected = clary.attention(*tensors)
    out = clary.attention(*(x.as_subclass(Marked) for x in tensors))
    assert close(out, expected)
    parameters = [torch.nn.Parameter(x, requires_grad=False) for x in tensors]
    assert close(clary.attention(*parameters), expected)


# ---- scaled_dot_product_attention ------------------------------------------------------------------------------------


def masks(q: torch.Tensor, k: torch.Tensor) -> dict[str, torch.Tensor | None]:
    lq, lk = q.shape[-2], k.shape[-2]
    generator = torch.Generator().manual_seed(3)
    found = {
        "none": None,
        "bool": torch.rand(lq, lk, generator=generator) < 0.7,
        "float": torch.randn(lq, lk, generator=generator).to(q.dtype),
        "keys": torch.rand(1, lk, generator=generator) < 0.7,
        "transposed": (torch.rand(lk, lq, generator=generator) < 0.7).T,
    }
    if q.dim() == 4:
        found["batch"] = torch.rand(q.shape[0], 1, 1, lk, generator=generator) < 0.7
        found["heads"] = torch.randn(1, q.shape[1], lq, lk, generator=generator).to(q.dtype)
    if q.dim() == 3:
        found["batch"] = torch.rand(q.shape[0], lq, lk, generator=generator) < 0.7
    return found


SHAPES = {
    "4-D": ((2, 4, 37, 24), (2, 4, 53, 24), (2, 4, 53, 16)),
    "3-D": ((3, 37, 24), (3, 53, 24), (3, 53, 16)),
    "2-D": ((37, 24), (53, 24), (53, 16)),
    "broadcast batch": ((2, 4, 37, 24), (1, 4, 53, 24), (1, 4, 53, 16)),
    "one head": ((2, 4, 37, 24), (2, 1, 53, 24), (2, 1, 53, 16)),
    "one query": ((2, 4, 1, 24), (2, 4, 53, 24), (2, 4, 53, 16)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_sdpa_is_that_of_pytorch(shape, dtype):
    torch.manual_seed(1)
    q, k, v = (torch.randn(size).to(dtype) for size in SHAPES[shape])
    bound = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    count = 0
    for (name, mask), causal, scale in itertools.product(masks(q, k).items(), (False, True), (None, 0.3)):
        if mask is not None and causal:
            continue
        wide = [x.double() for x in (q, k, v)]
        wide_mask = mask.double() if mask is not None and mask.dtype != torch.bool else mask
        expected = F.scaled_dot_product_attention(*wide, wide_mask, 0.0, causal, scale=scale)
        out = clary.torch.sdpa(q, k, v, mask, 0.0, causal, scale=scale, precision="exact", strict=True)
        assert out.dtype == dtype and close(out, expected, bound), (name, causal, scale)
        count += 1
    assert clary.torch.stats() == clary.torch.Stats(taken=count, fallbacks={})


def test_sdpa_gqa_and_strides(tensors):
    q, k, v = tensors
    grouped = F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)
    out = clary.torch.sdpa(q, k[:, :2], v[:, :2], enable_gqa=True, precision="exact", strict=True)
    assert close(out, grouped)
    assert out.transpose(1, 2).is_contiguous(), "a model's .transpose(1, 2).reshape(B, L, -1) copies nothing"
    columns = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in tensors]
    assert columns[0].stride(-1) != 1
    assert close(clary.torch.sdpa(*columns, precision="exact", strict=True), F.scaled_dot_product_attention(*tensors))


def test_rows_that_see_nothing_are_zero(tensors):
    mask = torch.ones(37, 53, dtype=torch.bool)
    mask[5] = False
    out = clary.torch.sdpa(*tensors, attn_mask=mask)
    assert not out[:, :, 5].any() and out[:, :, 6].all()


FALLBACKS = {
    "dropout": (lambda q, k, v: ((q, k, v), {"dropout_p": 0.5}), "dropout_p > 0"),
    "grad": (lambda q, k, v: ((q.clone().requires_grad_(), k, v), {}), "an input requires grad"),
    "double": (lambda q, k, v: ((q.double(), k.double(), v.double()), {}), "the dtype is torch.float64"),
    "meta": (lambda q, k, v: ((q.to("meta"), k.to("meta"), v.to("meta")), {}), "on device meta"),
    "5-D": (lambda q, k, v: ((q[None], k[None], v[None]), {}), "the inputs have 5, 5 and 5 dimensions"),
}


@pytest.mark.parametrize("what", FALLBACKS)
def test_what_is_not_served_is_left_to_pytorch_visibly(what, tensors):
    make, words = FALLBACKS[what]
    arguments, options = make(*tensors)
    with pytest.warns(clary.torch.FallbackWarning, match=words):
        torch.manual_seed(0)
        out = clary.torch.sdpa(*arguments, **options)
    torch.manual_seed(0)
    expected = F.scaled_dot_product_attention(*arguments, **options)
    assert out.shape == expected.shape and (out.is_meta or torch.equal(out, expected))
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        clary.torch.sdpa(*arguments, **options)
    stats = clary.torch.stats()
    assert stats.taken == 0 and list(stats.fallbacks.values()) == [2] and words in next(iter(stats.fallbacks))
    with pytest.raises(ValueError, match=f"clary.torch.sdpa: .*{words}"):
        clary.torch.sdpa(*arguments, **options, strict=True)


@pytest.mark.filterwarnings("ignore::clary.torch.FallbackWarning")
def test_what_pytorch_refuses_it_refuses_here_too(tensors):
    q, k, v = tensors
    mask = torch.ones(37, 53, dtype=torch.bool)
    for arguments, options in (
        ((q, k, v), {"attn_mask": mask, "is_causal": True}),
        ((q, k[..., :8], v), {}),
        ((q, k.half(), v), {}),
        ((q, k[:, :3], v[:, :3]), {}),
        ((q, k[:1].repeat(3, 1, 1, 1), v[:1].repeat(3, 1, 1, 1)), {}),
        ((q, k, None), {}),
    ):
        with pytest.raises((RuntimeError, TypeError, ValueError)) as theirs:
            F.scaled_dot_product_attention(*arguments, **options)
        with pytest.raises(theirs.type):
            clary.torch.sdpa(*arguments, **options)


def test_use_diverts_and_restores(tensors):
    expected = F.scaled_dot_product_attention(*tensors)
    with clary.torch.use(precision="int8"):
        out = F.scaled_dot_product_attention(*tensors)
        by_name = imported_by_name(*tensors)
        with clary.torch.use(precision="exact"):
            inner = torch.nn.functional.scaled_dot_product_attention(query=tensors[0], key=tensors[1], value=tensors[2])
    assert torch.equal(out, by_name) and 1e-4 < oracle.errors(out, expected).l2 < 2e-2 and close(inner, expected)
    assert clary.torch.stats().taken == 3 and "int8" not in clary.torch.last_plan()
    F.scaled_dot_product_attention(*tensors)
    assert clary.torch.stats().taken == 3
    with pytest.raises(ZeroDivisionError), clary.torch.use():
        1 / 0  # noqa: B018
    F.scaled_dot_product_attention(*tensors)
    assert clary.torch.stats().taken == 3
    with pytest.raises(ValueError, match="left|fit|dropout"), clary.torch.use(strict=True):
        F.scaled_dot_product_attention(*tensors, dropout_p=0.1)
    with pytest.raises(ValueError, match="precision: is 'int5'"):
        clary.torch.use(precision="int5")


def test_use_is_of_one_thread(tensors):
    inside, leave, taken = threading.Event(), threading.Event(), []

    def other() -> None:
        inside.wait(30)
        F.scaled_dot_product_attention(*tensors)
        taken.append(clary.torch.stats().taken)
        assert clary.torch.last_plan() is None
        leave.set()

    thread = threading.Thread(target=other)
    thread.start()
    with clary.torch.use():
        inside.set()
        assert leave.wait(30)
        F.scaled_dot_product_attention(*tensors)
    thread.join()
    assert taken == [0] and clary.torch.stats().taken == 1


@pytest.mark.parametrize("training", [False, True])
def test_modules_are_diverted(training):
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(64, 4, batch_first=True).requires_grad_(False).train(training)
    encoder = torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0, batch_first=True).requires_grad_(False)
    x = torch.randn(2, 40, 64)
    padding = torch.arange(40)[None] >= torch.tensor([[40], [25]])
    for module in (lambda: attention(x, x, x, need_weights=False)[0], lambda: encoder.train(training)(x),
                   lambda: encoder(x, src_key_padding_mask=padding)):  # fmt: skip
        expected = module()
        clary.torch.reset_stats()
        with clary.torch.use(precision="exact", strict=True):
            out = module()
        assert clary.torch.stats().taken == 1 and torch.allclose(out, expected, atol=1e-5)
