#!/usr/bin/env bash
# OpenVINO: giving a model its batch size afterwards takes as long as reading the whole file.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, numpy 2.4, Python 3.11, Linux x86-64.  Date: 2026-11-28.
# Expected: `Model.reshape` propagates one known size and is free beside reading the ONNX file.
# Seen: with 80 layers whose reshapes follow the batch size, reading takes 30 ms and reshape as long again.
# `InputModel.set_partial_shape` before the conversion gives the same model at no cost.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 'numpy==2.4.*'
GRAPH="$folder/graph.onnx" "$folder/venv/bin/python" - <<'PYTHON'
import os
import statistics
import time

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper
from openvino.frontend import FrontEndManager

path, tokens, width, heads = os.environ["GRAPH"], 16, 64, 4
nodes, constants = [], []


def node(kind, inputs, output, **attributes):
    nodes.append(helper.make_node(kind, inputs, [output], **attributes))
    return output


def constant(name, value):
    constants.append(numpy_helper.from_array(np.asarray(value), name))
    return name


constant("first", np.int64(0))
constant("axis", np.array([0]))
constant("apart", np.array([tokens, heads, width // heads]))
constant("together", np.array([tokens, width]))
x = "x"
for i in range(80):
    weights = np.random.default_rng(i).normal(size=(width, width)).astype(np.float32)
    mixed = node("MatMul", [x, constant(f"weights{i}", weights)], f"mixed{i}")
    batch = node("Gather", [node("Shape", [mixed], f"shape{i}"), "first"], f"batch{i}")
    batch = node("Unsqueeze", [batch, "axis"], f"size{i}")
    split = node("Concat", [batch, "apart"], f"split{i}", axis=0)
    whole = node("Concat", [batch, "together"], f"whole{i}", axis=0)
    turned = node("Transpose", [node("Reshape", [mixed, split], f"a{i}")], f"b{i}", perm=[0, 2, 1, 3])
    turned = node("Transpose", [node("Softmax", [turned], f"c{i}")], f"d{i}", perm=[0, 2, 1, 3])
    x = node("Add", [node("Reshape", [turned, whole], f"e{i}"), x], f"x{i}")
ends = [
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", tokens, width])]
    for name in ("x", x)
]
graph = helper.make_graph(nodes, "layers", *ends, constants)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
onnx.checker.check_model(model)
onnx.save(model, path)


def read(before):
    """Seconds to read and to reshape, and how many operations there are then."""
    start = time.perf_counter()
    reader = FrontEndManager().load_by_framework("onnx")
    source = reader.load(path)
    if before:
        source.set_partial_shape(source.get_inputs()[0], ov.PartialShape([1, tokens, width]))
    model = reader.convert(source)
    read = time.perf_counter()
    if not before:
        model.reshape([1, tokens, width])
    return read - start, time.perf_counter() - read, len(model.get_ops()), model.output(0).shape


found = {before: [read(before) for _ in range(15)] for before in (False, True)}
for before, runs in found.items():
    seconds = [statistics.median(run[part] for run in runs) for part in (0, 1)]
    print(f"size given {'before' if before else 'after'}: read {1e3 * seconds[0]:.0f} ms, then "
          f"{1e3 * seconds[1]:.0f} ms; {runs[0][2]} operations")
total = {before: statistics.median(run[0] + run[1] for run in runs) for before, runs in found.items()}
assert found[False][0][2:] == found[True][0][2:], "this has changed"
assert total[False] > 1.3 * total[True], "this has changed"
PYTHON
