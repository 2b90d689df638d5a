#!/usr/bin/env bash
# OpenVINO loads a compiled model from its cache although a weight in it has changed.
#
# Versions: openvino 2026.4.1, Python 3.11, Linux x86-64.  Date: 2026-11-28.
# Expected: the blob in CACHE_DIR carries a checksum, so that a damaged one is compiled again.
# Seen: with one bit of one weight flipped LOADED_FROM_CACHE is true, nothing is said, and the output
# is another one. What the blob's name has in it is the model's content, not the blob's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 'numpy==2.4.*'
CACHE="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import os
from pathlib import Path

import numpy as np
import openvino as ov

cache = Path(os.environ["CACHE"])
weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
x = ov.opset13.parameter([1, 64], np.float32)
model = ov.Model([ov.opset13.matmul(x, ov.opset13.constant(weights), False, False)], [x])


def computed():
    compiled = ov.Core().compile_model(model, "CPU", {"CACHE_DIR": str(cache)})
    loaded = compiled.get_property("LOADED_FROM_CACHE")
    return loaded, next(iter(compiled([np.ones((1, 64), np.float32)]).values())).copy()


loaded, right = computed()
(blob,) = cache.rglob("*.blob")
content = bytearray(blob.read_bytes())
place = content.find(weights[5, 7:9].tobytes())
assert place > 0, "the weights are stored otherwise: this has changed"
content[place + 3] ^= 0x04  # a bit of the exponent
blob.write_bytes(content)
again, wrong = computed()
print("from the cache:", loaded, "then", again)
print("largest difference:", float(np.abs(wrong - right).max()))
assert (loaded, again) == (False, True), "this has changed"
assert np.abs(wrong - right).max() > 0.1, "this has changed"
PYTHON
