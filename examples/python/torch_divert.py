"""A PyTorch model whose attention is diverted to Clary, and what became of its calls."""

import clary.torch
import torch

torch.manual_seed(0)
layers = torch.nn.TransformerEncoder(
    torch.nn.TransformerEncoderLayer(256, 8, 512, batch_first=True), num_layers=4, enable_nested_tensor=False
).eval()
x = torch.randn(2, 500, 256)
padding = torch.arange(500) >= torch.tensor([[500], [320]])

with torch.inference_mode():
    expected = layers(x, src_key_padding_mask=padding)[~padding]
    for precision in ("exact", "int8_f16", "int8", "auto"):
        with clary.torch.use(precision=precision):
            out = layers(x, src_key_padding_mask=padding)[~padding]
        cosine = torch.nn.functional.cosine_similarity(out, expected, dim=-1).min()
        print(f"{precision:9} least cosine of a token to PyTorch's own: {cosine:.6f}")

print(clary.torch.stats())
print(clary.torch.last_plan())
