"""A Llama-like model with random weights that generates through Clary, beside PyTorch's attention."""

import clary.hf
import clary.torch
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

clary.hf.register()
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=2, eos_token_id=None,
)  # fmt: skip
model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
prompt = torch.randint(0, 512, (2, 300))
padding = torch.ones_like(prompt)
padding[1, :100] = 0  # the second text is shorter, and padded on the left

with torch.inference_mode():
    expected = model(prompt, attention_mask=padding).logits[padding.bool()]
    for name in ("clary:exact", "clary:int8_f16", "clary:int8", "clary"):
        model.set_attn_implementation(name)
        logits = model(prompt, attention_mask=padding).logits[padding.bool()]
        error = (logits - expected).norm() / expected.norm()
        print(f"{name:14} relative L2 distance of the logits to sdpa's: {error:.1e}")

    clary.torch.reset_stats()
    tokens = model.generate(
        prompt, attention_mask=padding, max_new_tokens=16, do_sample=False, pad_token_id=0, use_cache=True
    )
print("generated", tokens[0, 300:].tolist())
print(clary.torch.stats())
