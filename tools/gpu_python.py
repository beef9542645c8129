#!/usr/bin/env python3
"""What the Python package promises about tensors on a GPU, against float64. gpu_python.py [DEVICE, default cuda]

Prints a line for each check; exits with 1 when one is wrong. On `cpu` all but streams and graphs are checked.
"""

import sys
import traceback

import clary
import clary.torch
import torch
import torch.nn.functional as F

# Largest relative L2 error on N(0, 1): docs/gpu.md, twice what its models say.
BOUNDS = {"exact": 0.005, "bf16": 0.008, "int8_f16": 0.025, "int8": 0.08, "int4": 0.25, "auto": 0.08}


def tensors(device, dtype=torch.bfloat16, lq=200, lk=300, dim=64):
    return [torch.randn(2, heads, length, dim, dtype=dtype, device=device)
            for heads, length in ((4, lq), (2, lk), (2, lk))]


def reference(q, k, v, **options):
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), enable_gqa=True, **options)


def expect(out, expected, bound, what):
    error = ((out.double() - expected).norm() / expected.norm()).item()
    if not error <= bound:
        raise AssertionError(f"{what}: relative L2 error {error:.4f}, at most {bound}")


def check_precisions(device):
    for precision, bound in BOUNDS.items():
        for dim in (40, 64, 96, 128, 256):
            q, k, v = tensors(device, dim=dim)
            expect(clary.attention(q, k, v, precision=precision), reference(q, k, v), bound, f"{precision}, dim {dim}")


def check_features(device):
    q, k, v = tensors(device, torch.float16, 300, 300)
    out = clary.attention(q, k, v, precision="exact", causal="top_left")
    expect(out, reference(q, k, v, is_causal=True), 0.005, "causal")
    mask = torch.rand(300, 300, device=device) < 0.5
    out, lse = clary.attention(q, k, v, precision="exact", mask=mask, return_lse=True)
    expect(out, reference(q, k, v, attn_mask=mask), 0.005, "mask")
    scores = q.double() @ k.double().repeat_interleave(2, 1).transpose(2, 3) / 8
    expect(lse, scores.masked_fill(~mask, -torch.inf).logsumexp(-1), 0.001, "LSE")


def check_varlen(device):
    q, k, v = (x[:1] for x in tensors(device, lq=300, lk=300))
    ends = torch.tensor([0, 120, 300], dtype=torch.int32, device=device)
    out = clary.attention(q, k, v, precision="exact", cu_seqlens_q=ends, cu_seqlens_k=ends)
    for part in (slice(0, 120), slice(120, 300)):
        expect(out[:, :, part], reference(q[:, :, part], k[:, :, part], v[:, :, part]), 0.005, "varlen")


def check_sdpa(device):
    q, k, v = tensors(device)
    clary.torch.reset_stats()
    with clary.torch.use(precision="int8"):
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    expect(out, reference(q, k, v), BOUNDS["int8"], "use()")
    if clary.torch.stats().taken != 1:
        raise AssertionError(f"use(): the call was left to PyTorch: {clary.torch.stats().fallbacks}")


def check_compile(device):
    def model(q, k, v):
        return clary.attention(q * 2, k, v, precision="int8") + 1

    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for turn in range(4):  # on a GPU: warming up, recording, and two replays with other inputs
        q, k, v = tensors(device)
        expect(compiled(q, k, v).clone() - 1, reference(q * 2, k, v), 0.1, f"reduce-overhead, call {turn}")


def check_refusals(device):
    q, k, v = tensors(device)
    for call, error, text in (
        (lambda: clary.attention(q, k.to("meta"), v), TypeError, "k: is on"),
        (lambda: clary.attention(q, k, v[..., :32, :]), ValueError, "v:"),
        (lambda: clary.attention(q, k, v, precision="int3"), ValueError, "precision"),
    ):
        try:
            call()
        except error as raised:
            if text not in str(raised):
                raise AssertionError(f"the message does not say {text!r}: {raised}") from raised
        else:
            raise AssertionError(f"nothing was raised where {text!r} was expected")
    expect(clary.attention(q, k, v, precision="exact"), reference(q, k, v), 0.005, "after refusals")


def check_streams(device):
    """Inputs are made late on the stream that is current: a call on another one would read what is not there yet."""
    stream = torch.cuda.Stream(device)
    q, k, v = (torch.full_like(x, torch.nan) for x in tensors(device))
    fresh = tensors(device)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles
        for old, new in zip((q, k, v), fresh):
            old.copy_(new)
        out = clary.attention(q, k, v, precision="int8")
    stream.synchronize()
    expect(out, reference(*fresh), BOUNDS["int8"], "a stream of its own")


def check_graph(device):
    q, k, v = tensors(device)
    clary.attention(q, k, v, precision="int8")  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = clary.attention(q, k, v, precision="int8")
    for turn in range(2):
        for old, new in zip((q, k, v), tensors(device)):
            old.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        expect(out, reference(q, k, v), BOUNDS["int8"], f"graph, replay {turn}")


def main():
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    torch.manual_seed(20260)
    print(f"seed 20260, PyTorch {torch.__version__}")
    checks = [check_precisions, check_features, check_varlen, check_sdpa, check_compile, check_refusals]
    if device.type == "cuda":
        checks += [check_streams, check_graph]
    wrong = 0
    for check in checks:
        try:
            check(device)
            print(f"{check.__name__}: right")
        except Exception:
            traceback.print_exc()
            print(f"{check.__name__}: WRONG")
            wrong += 1
    print(f"{len(checks) - wrong} right, {wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
