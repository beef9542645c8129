#!/usr/bin/env python3
"""Times PyTorch's attention on the shapes of `clary_gpu_check bench`, in the same units. gpu_torch.py OUT.json

Beside PyTorch's own kernels: flash-attn 3 and SageAttention, where they can be imported (tools/gpu_peers.sh installs
them).
"""

import importlib
import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS = 32


def median_ms(run):
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    times = []
    while len(times) < 5 or (sum(times) < 300 and len(times) < 200):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def sdpa(backend):
    def attend(q, k, v, causal):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attend


def flash_attention_3(module):
    # It takes [batch, length, heads, dim]; views of that shape cost nothing on the device.
    return lambda q, k, v, causal: module.flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                                                          causal=causal)


def sage_attention(module):
    return lambda q, k, v, causal: module.sageattn(q, k, v, tensor_layout="HND", is_causal=causal)


def runners():
    """(name, attend): what there is to time. A peer that is not there is named."""
    yield "cuDNN", sdpa(SDPBackend.CUDNN_ATTENTION)
    yield "flash", sdpa(SDPBackend.FLASH_ATTENTION)
    for name, module, make in (("flash-attn 3", "flash_attn_interface", flash_attention_3),
                               ("SageAttention", "sageattention", sage_attention)):
        try:
            yield name, make(importlib.import_module(module))
        except ImportError as error:
            print(f"{name}: skipped, {error}")


def measure(name, attend, length, dim, causal):
    """One row of the table, or None where the kernel does not serve the shape."""
    q, k, v = (torch.randn(1, HEADS, length, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    try:
        ms = median_ms(lambda: attend(q, k, v, causal))
    except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        print(f"{name} {length} {dim}: {(str(error) or type(error).__name__).splitlines()[0]}")
        return None
    tops = 4 * HEADS * length * length * dim / (2 if causal else 1) / ms * 1e-9
    print(f"{name:14} {length:6} {dim:4} {'causal' if causal else 'full':7} {ms:9.3f} ms {tops:8.1f}")
    return {"kernel": name, "length": length, "dim": dim, "causal": causal, "ms": ms, "tops": tops}


def main():
    rows = [measure(name, attend, length, dim, causal) for name, attend in runners() for dim in (64, 128, 256)
            for causal in (False, True) for length in (8192, 32768)]
    with open(sys.argv[1], "w") as file:
        json.dump({"torch": torch.__version__, "rows": [row for row in rows if row]}, file, indent=1)


if __name__ == "__main__":
    main()
