#!/usr/bin/env bash
# OpenVINO compiles a transposed reduction of one column to an output of another shape than the
# model's.
#
# Versions: openvino 2026.4.1, Python 3.11, Linux x86-64, CPU plugin.  Date: 2026-11-30.
# Expected: the compiled model has the model's output shape, (1, 3), for the transpose of a sum of
# shape (3, 1).
# Seen: the model says (1, 3), the compiled model and its results say (3, 1), for sums and maxima;
# with two columns, or without the reduction, shapes are right. The numbers are right throughout. A
# caller that slices "the first texts of each row" gets the wrong axis only for a batch of one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 'numpy==2.4.*'
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import openvino as ov
from openvino import opset13 as operations


def shapes(columns, reduce):
    if reduce is None:
        given = operations.parameter([3, columns], np.float32)
        before = operations.relu(given)
    else:
        given = operations.parameter([2, 3, columns], np.float32)
        before = reduce(given, operations.constant([0]), False)
    turned = operations.transpose(before, operations.constant([1, 0]))
    model = ov.Model([operations.result(turned)], [given])
    compiled = ov.Core().compile_model(model, "CPU")
    values = np.arange(np.prod(given.shape), dtype=np.float32).reshape(list(given.shape))
    found = compiled(values)[0]
    return tuple(model.output(0).shape), tuple(compiled.output(0).shape), found.shape


for name, columns, reduce in (
    ("sum", 1, operations.reduce_sum),
    ("maximum", 1, operations.reduce_max),
    ("sum", 2, operations.reduce_sum),
    ("no reduction", 1, None),
):
    of_model, of_compiled, of_result = shapes(columns, reduce)
    print(f"{name}, {columns} columns: model {of_model}, compiled {of_compiled}, result {of_result}")
    odd = columns == 1 and reduce is not None
    assert of_model == (columns, 3), "this has changed"
    assert of_compiled == of_result == ((3, 1) if odd else of_model), "this has changed"
PYTHON
