#!/usr/bin/env python3
"""Times PyTorch's attention on the shapes of `clary_gpu_check bench`, in the same units. gpu_torch.py OUT.json"""

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


def main():
    rows = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        for dim in (64, 128, 256):
            for causal in (False, True):
                for length in (8192, 32768):
                    q, k, v = (torch.randn(1, HEADS, length, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
                    try:
                        with sdpa_kernel(backend):
                            ms = median_ms(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
                    except RuntimeError as error:
                        print(f"{backend.name} {length} {dim}: {str(error).splitlines()[0]}")
                        continue
                    tops = 4 * HEADS * length * length * dim / (2 if causal else 1) / ms * 1e-9
                    rows.append({"backend": backend.name, "length": length, "dim": dim, "causal": causal, "ms": ms,
                                 "tops": tops})
                    print(f"{backend.name:16} {length:6} {dim:4} {'causal' if causal else 'full':7} {ms:9.3f} ms {tops:8.1f}")
    with open(sys.argv[1], "w") as file:
        json.dump({"torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
