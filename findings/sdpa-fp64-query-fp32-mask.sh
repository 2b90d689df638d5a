#!/usr/bin/env bash
# scaled_dot_product_attention on a CPU takes an FP32 mask beside FP64 queries and computes something else.
#
# Versions: torch 2.13.0 (CPU), Python 3.11, x86-64 with AVX2.  Date: 2026-11-28.
# Expected: an error, as for FP64 masks beside FP32 queries, or the mask widened to FP64. The check lets
# FP32 masks through for every type of query, and with fewer than 8 keys the result is right to 1e-15.
# Seen: from 8 keys on the result is off by about the size of the values, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn.functional import scaled_dot_product_attention

torch.manual_seed(0)
for keys in (5, 8, 32):
    q, k, v = (torch.randn(1, 1, keys, 16, dtype=torch.float64) for _ in range(3))
    mask = torch.randn(keys, keys)
    plain = ((q @ k.mT) / 4 + mask.double()).softmax(-1) @ v
    narrow = (scaled_dot_product_attention(q, k, v, attn_mask=mask) - plain).abs().max()
    wide = (scaled_dot_product_attention(q, k, v, attn_mask=mask.double()) - plain).abs().max()
    print(f"{keys} keys: off by {narrow:.1e} with an FP32 mask, {wide:.1e} with an FP64 mask")
    assert wide < 1e-12
    assert (narrow > 0.1) == (keys >= 8), "this has changed"
PYTHON
# 5 keys: off by 8.9e-16 with an FP32 mask, 8.9e-16 with an FP64 mask
# 8 keys: off by 2.6e+00 with an FP32 mask, 4.4e-16 with an FP64 mask
# 32 keys: off by 2.5e+00 with an FP32 mask, 1.1e-15 with an FP64 mask
