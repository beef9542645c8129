"""clary.hf: every way in which transformers can hand over a call, against float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import clary
import clary.hf
import clary.torch
import numpy as np
import oracle
import pytest
import torch
import transformers
from clary._params import PRECISIONS
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask, sliding_window_causal_mask_function

NAMES = ["clary", *(f"clary:{precision}" for precision in PRECISIONS)]
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    clary.hf.register()
    # On models this small, threads wait for each other longer than they work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(lq: int = 19, lk: int = 19, b: int = 2, hq: int = 4, hkv: int = 2, d: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(lq * 1000 + lk)
    shapes = (b, hq, lq, d), (b, hkv, lk, d), (b, hkv, lk, d)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any = None, **kwargs: Any) -> torch.Tensor:
    module = torch.nn.Module()
    module.is_causal = kwargs.pop("module_is_causal", True)
    with torch.no_grad():
        out, weights = AttentionInterface()["clary:exact"](module, q, k, v, mask, **kwargs)
    assert weights is None and out.is_contiguous()
    return out.transpose(1, 2)


def check(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs: Any) -> None:
    """`out` is what the definition gives; and not what it gives without any one of the arguments."""
    assert oracle.errors(out, oracle.attention(q, k, v, **kwargs)[0]).l2 < 2e-6
    for name in kwargs:
        without = {other: value for other, value in kwargs.items() if other != name}
        assert oracle.errors(out, oracle.attention(q, k, v, **without)[0]).l2 > 1e-2, f"{name} changes nothing"


def test_names_are_known_to_both_interfaces() -> None:
    for name in NAMES:
        assert name in AttentionInterface().valid_keys()
        assert AttentionMaskInterface()[name] is clary.hf.make_mask


@pytest.mark.parametrize("name", NAMES)
def test_precisions(name: str) -> None:
    q, k, v = make(64, 300)
    with torch.no_grad():
        out, _ = AttentionInterface()[name](torch.nn.Module(), q, k, v, None, is_causal=False)
    precision = name.removeprefix("clary").removeprefix(":") or "auto"
    expected = clary.attention(q, k, v, precision=precision)
    assert torch.equal(out.transpose(1, 2), expected)


def test_guard() -> None:
    q, k, v = make(64, 300)
    clary.hf.register(guard=1e-5)
    try:
        with torch.no_grad():
            AttentionInterface()["clary:int8"](torch.nn.Module(), q, k, v, None, is_causal=False)
        assert "exact" in (clary.torch.last_plan() or "")
    finally:
        clary.hf.register()


# ---- one call ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lq,lk", [(19, 19), (5, 19), (1, 19)])
def test_no_mask_is_aligned_to_the_last_key(lq: int, lk: int) -> None:
    q, k, v = make(lq, lk)
    out = call(q, k, v)
    if lq > 1:
        check(out, q, k, v, causal="bottom_right")
    else:
        check(out, q, k, v)


def test_is_causal_of_the_call_wins_over_the_module() -> None:
    q, k, v = make()
    check(call(q, k, v, is_causal=False), q, k, v)
    check(call(q, k, v, module_is_causal=False), q, k, v)
    check(call(q, k, v, module_is_causal=False, is_causal=True), q, k, v, causal="bottom_right")


def test_a_mask_replaces_causality_and_window() -> None:
    q, k, v = make()
    mask = torch.rand(2, 1, 19, 19) > 0.3
    check(call(q, k, v, mask, sliding_window=4, is_causal=True), q, k, v, mask=mask.numpy())
    added = torch.randn(2, 1, 19, 19).masked_fill(~mask, -torch.inf)
    check(call(q, k, v, added), q, k, v, mask=added.numpy())


@pytest.mark.parametrize("lq", [19, 7, 1])
def test_window_without_a_mask(lq: int) -> None:
    q, k, v = make(lq, 19)
    out = call(q, k, v, sliding_window=5)
    i, j = np.arange(lq)[:, None] + 19 - lq, np.arange(19)[None]
    check(out, q, k, v, mask=(j <= i) & (j > i - 5))


def test_window_of_an_encoder_has_two_sides() -> None:
    q, k, v = make()
    distance = np.abs(np.arange(19)[:, None] - np.arange(19)[None])
    check(call(q, k, v, sliding_window=5, is_causal=False), q, k, v, mask=distance < 5)


def test_softcap_sinks_scale() -> None:
    q, k, v = make()
    sinks = torch.linspace(-1, 3, 4, dtype=torch.bfloat16)
    out = call(q, k, v, softcap=1.5, s_aux=sinks, scaling=0.7)
    check(out, q, k, v, causal="bottom_right", softcap=1.5, sinks=oracle.double(sinks), scale=0.7)
    check(call(q, k, v, scaling=torch.tensor(0.7), is_causal=False), q, k, v, scale=0.7)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_position_bias(kind: str) -> None:
    """T5 and its like: the bias is an argument of its own."""
    q, k, v = make()
    bias = torch.randn(1, 4, 19, 19)
    causal = torch.ones(19, 19, dtype=torch.bool).tril()[None, None]
    mask = {"none": None, "bool": causal, "float": torch.zeros(1, 1, 19, 19).masked_fill(~causal, -1e30)}[kind]
    check(call(q, k, v, mask, position_bias=bias), q, k, v, mask=bias.masked_fill(~causal, -torch.inf).numpy())


def test_packed_sequences() -> None:
    q, k, v = make(b=1)
    ends = torch.tensor([0, 7, 19], dtype=torch.int32)
    document = np.arange(19) >= 7
    out = call(q, k, v, cu_seq_lens_q=ends, cu_seq_lens_k=ends)
    check(out, q, k, v, mask=document[:, None] == document[None], causal="bottom_right")
    mask = torch.ones(1, 1, 19, 19, dtype=torch.bool).tril()
    check(call(q, k, v, mask, cu_seq_lens_q=ends, cu_seq_lens_k=ends), q, k, v, mask=mask.numpy())


def test_learned_queries_with_a_batch_of_one() -> None:
    q, k, v = make()
    out = call(q[:1], k, v, is_causal=False)
    check(out, q[:1].expand(2, -1, -1, -1), k, v)


def test_other_layouts_in_memory() -> None:
    q, k, v = make()
    k_by_channel = k.transpose(2, 3).contiguous().transpose(2, 3)
    q_of_projection = q.transpose(1, 2).contiguous().transpose(1, 2)
    check(call(q_of_projection, k_by_channel, v), q, k, v, causal="bottom_right")


def test_rows_that_see_nothing_are_zero() -> None:
    q, k, v = make()
    mask = torch.ones(2, 1, 19, 19, dtype=torch.bool).tril()
    mask[0, :, :, :6] = False
    out = call(q, k, v, mask)
    assert not out[0, :, :6].any() and out[0, :, 6:].any() and not out.isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in make())
    out = call(q, k, v)
    assert out.dtype == dtype
    assert oracle.errors(out, oracle.attention(q, k, v, causal="bottom_right")[0]).l2 < 5e-3


# ---- the mask function -------------------------------------------------------------------------------------------


def test_masks_are_left_out_only_where_none_is_needed() -> None:
    assert clary.hf.make_mask(batch_size=1, q_length=5, kv_length=5) is None
    assert clary.hf.make_mask(batch_size=1, q_length=1, kv_length=9, q_offset=8) is None
    # An empty static cache of 9. sdpa leaves the mask out, and means top-left by that.
    assert sdpa_mask(batch_size=1, q_length=5, kv_length=9) is None
    mask = clary.hf.make_mask(batch_size=1, q_length=5, kv_length=9)
    assert mask is not None and torch.equal(mask[0, 0], torch.ones(5, 9, dtype=torch.bool).tril())


def test_masks_hold_window_and_padding() -> None:
    window = sliding_window_causal_mask_function(2)
    padding = torch.tensor([[False, True, True, True]])
    arguments = {"batch_size": 1, "q_length": 4, "kv_length": 4, "mask_function": window, "local_size": 2}
    mask = clary.hf.make_mask(**arguments, attention_mask=padding)
    expected = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert mask is not None and mask[0, 0].int().tolist() == expected


def test_models_with_attention_of_their_own_are_refused() -> None:
    """They would add the boolean mask to their scores."""
    config = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    model = transformers.AutoModel.from_config(config, attn_implementation="clary").eval()
    with torch.no_grad(), pytest.raises(ValueError, match="Bloom.* computes attention by itself"):
        model(torch.arange(5)[None])


# ---- what is not served ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments,reason",
    [({"dropout": 0.1}, "dropout"), ({"position_bias": torch.zeros(1, 4, 19, 19, requires_grad=True)}, "grad")],
)
def test_training_is_left_to_sdpa(arguments: dict[str, Any], reason: str) -> None:
    q, k, v = make(hkv=4)
    clary.torch.reset_stats()
    with pytest.warns(clary.torch.FallbackWarning, match=reason):
        out, _ = AttentionInterface()["clary"](torch.nn.Module(), q, k, v, None, **arguments)
    assert out.requires_grad == ("position_bias" in arguments)
    stats = clary.torch.stats()
    assert stats.taken == 0 and sum(stats.fallbacks.values()) == 1


def test_gradients_of_a_model() -> None:
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**TINY), attn_implementation="clary")
    ids = torch.arange(3, 23).reshape(2, 10)
    clary.torch.reset_stats()
    with pytest.warns(clary.torch.FallbackWarning, match="requires grad"):
        model(ids, labels=ids).loss.backward()
    gradient = model.model.layers[0].self_attn.q_proj.weight.grad
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    model(ids, labels=ids).loss.backward()
    assert torch.equal(gradient, model.model.layers[0].self_attn.q_proj.weight.grad) and gradient.any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"softcap": 2.0},
        {"s_aux": torch.zeros(4)},
        {"sliding_window": 5},
        {"cu_seq_lens_q": torch.tensor([0, 19]), "cu_seq_lens_k": torch.tensor([0, 19])},
    ],
    ids=str,
)
def test_sdpa_gets_nothing_that_it_would_pass_over(arguments: dict[str, Any]) -> None:
    q, k, v = make(b=1)
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AttentionInterface()["clary"](torch.nn.Module(), q, k, v, None, dropout=0.1, **arguments)
    with pytest.raises(ValueError, match="is_causal"):
        AttentionInterface()["clary"](torch.nn.Module(), q[:, :, :7], k, v, None, dropout=0.1)


def test_a_window_longer_than_the_keys_is_none() -> None:
    q, k, v = make(hkv=4)
    clary.torch.reset_stats()
    with pytest.warns(clary.torch.FallbackWarning):
        AttentionInterface()["clary"](torch.nn.Module(), q, k, v, None, dropout=0.1, sliding_window=19)


@pytest.mark.parametrize("name", ["indices", "block_indices", "sinks"])
def test_what_stands_for_a_mask_is_refused(name: str) -> None:
    q, k, v = make()
    with pytest.raises(ValueError, match=f"^{name}: "):
        call(q, k, v, **{name: torch.zeros(1, dtype=torch.long)})


def test_attention_weights_are_refused() -> None:
    q, k, v = make()
    with pytest.raises(ValueError, match="output_attentions"):
        call(q, k, v, output_attentions=True)
    call(q, k, v, output_attentions=False)


# ---- torch.compile -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
def test_compiled_with_static_cache() -> None:
    """Prefill and two steps, compiled in one graph each, equal the eager ones."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(**TINY, head_dim=16, sliding_window=8, attn_logit_softcapping=5.0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="clary:exact").eval()
    ids = torch.randint(3, 64, (2, 14))
    padding = torch.ones_like(ids)
    padding[0, :4] = 0

    def run(forward: Any) -> list[torch.Tensor]:
        cache = transformers.StaticCache(config=config, max_cache_len=20)
        logits = []
        for start, end in ((0, 12), (12, 13), (13, 14)):
            inputs = {"attention_mask": padding[:, :end], "past_key_values": cache}
            logits.append(forward(input_ids=ids[:, start:end], **inputs).logits)
        return logits

    with torch.no_grad():
        eager = run(model)
        clary.torch.reset_stats()
        compiled = run(torch.compile(model, fullgraph=True, backend="aot_eager"))
        whole = model(input_ids=ids, attention_mask=padding, use_cache=False).logits
    assert clary.torch.stats() == clary.torch.Stats(taken=4, fallbacks={})
    for one, other in zip(eager, compiled):
        assert torch.equal(one, other)
    torch.testing.assert_close(compiled[-1][:, -1], whole[:, -1], rtol=0, atol=1e-5)


def test_the_first_call_of_a_process_may_be_compiled() -> None:
    code = (
        "import clary.hf, torch; from transformers import AttentionInterface; clary.hf.register()\n"
        "attention, module = AttentionInterface()['clary'], torch.nn.Module()\n"
        "compiled = torch.compile(lambda x: attention(module, x, x, x, None)[0], fullgraph=True, backend='eager')\n"
        "x = torch.randn(1, 2, 9, 16)\n"
        "assert torch.equal(compiled(x), attention(module, x, x, x, None)[0])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
