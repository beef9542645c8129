"""An SDXL-like UNet and a Wan-like video transformer of diffusers, both with random weights, on Clary."""

import clary.diffusers
import clary.torch
import torch
from diffusers import UNet2DConditionModel, WanTransformer3DModel

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=32, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=(2, 4), cross_attention_dim=64, norm_num_groups=16,
).eval()  # fmt: skip
latents, text = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 64)

with torch.inference_mode():
    expected = unet(latents, 10, text).sample
    with clary.torch.use(precision="int8"):  # a UNet calls scaled_dot_product_attention
        out = unet(latents, 10, text).sample
print(f"UNet: relative L2 distance to PyTorch's attention {(out - expected).norm() / expected.norm():.1e}")

video = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=4, text_dim=64,
    freq_dim=64, ffn_dim=128, num_layers=2,
).eval()  # fmt: skip
inputs = {
    "hidden_states": torch.randn(1, 4, 5, 16, 16),
    "timestep": torch.tensor([3]),
    "encoder_hidden_states": torch.randn(1, 60, 64),
}

clary.diffusers.install()
with torch.inference_mode():
    expected = video(**inputs).sample
    video.set_attention_backend("clary:int8")  # newer models choose their attention by name
    out = video(**inputs).sample
print(f"Wan: relative L2 distance to PyTorch's attention {(out - expected).norm() / expected.norm():.1e}")
print(clary.torch.stats())
