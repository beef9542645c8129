"""Attention of NumPy arrays in every precision: how far each is from float64, and what the plan says."""

import clary
import numpy as np

rng = np.random.default_rng(0)
q = rng.standard_normal((1, 8, 1024, 64), dtype=np.float32)
k, v = (rng.standard_normal((1, 2, 1024, 64), dtype=np.float32) for _ in range(2))

scores = np.einsum("bhgid,bhjd->bhgij", q.reshape(1, 2, 4, 1024, 64).astype(float), k) / 8
weights = np.exp(scores - scores.max(-1, keepdims=True))
weights /= weights.sum(-1, keepdims=True)
reference = np.einsum("bhgij,bhjd->bhgid", weights, v).reshape(q.shape)

for precision in ("exact", "bf16x3", "bf16", "int8_f16", "int8", "int4"):
    out = clary.attention(q, k, v, precision=precision)
    error = np.linalg.norm(out - reference) / np.linalg.norm(reference)
    print(f"{precision:9} relative L2 error {error:.1e}")

print()
print(clary.plan(q, k, v, causal="bottom_right", precision="auto").describe())
