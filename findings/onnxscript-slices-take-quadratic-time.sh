#!/usr/bin/env bash
# onnxscript's rule SlicesSplit tries every pair of slices: twice as many take four times as long.
#
# Versions: onnxscript 0.7.2, onnx-ir 1.1.0, onnx 1.23.2, Python 3.11.  Date: 2026-11-29.
# Expected: rewriting takes time in proportion to the number of nodes, as for other nodes.
# Seen: 0.2 s for 800 slices, 0.8 s for 1,600, 3.3 s for 3,200, none of which is rewritten; 0.04 s with
# the other rules. rewriter.rewrite and optimizer.optimize have the rule.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxscript==0.7.2 onnx-ir==1.1.0 onnx==1.23.2
"$folder/venv/bin/python" - <<'PYTHON'
import time

import numpy as np
import onnx_ir
from onnx import TensorProto, helper, numpy_helper
from onnxscript import rewriter
from onnxscript.rewriter.rules.common import cast_cast_rule, slice_split_rule

info = helper.make_tensor_value_info


def rows(count):
    """Every row of a matrix, by a slice each."""
    constants = [numpy_helper.from_array(np.array([n], np.int64), f"n{n}") for n in range(count + 1)]
    nodes = [
        helper.make_node("Slice", ["x", f"n{n}", f"n{n + 1}", "n0"], [f"y{n}"])
        for n in range(count)
    ]
    outputs = [info(f"y{n}", TensorProto.FLOAT, [1, 2]) for n in range(count)]
    inputs = [info("x", TensorProto.FLOAT, [count, 2])]
    graph = helper.make_graph(nodes, "rows", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return onnx_ir.serde.deserialize_model(model)


def seconds(count, rule):
    model = rows(count)
    start = time.process_time()
    rewriter.rewrite(model, pattern_rewrite_rules=[rule])
    took = time.process_time() - start
    assert [node.op_type for node in model.graph].count("Slice") == count
    return took


seconds(100, slice_split_rule)  # imports
times = [(seconds(it, slice_split_rule), seconds(it, cast_cast_rule)) for it in (800, 1600, 3200)]
for count, (slices, casts) in zip((800, 1600, 3200), times):
    print(f"{count} slices: SlicesSplit {slices:.2f} s, CastCast {casts:.2f} s")
assert times[2][0] > 9 * times[0][0], "this has changed"  # 4 times as many: 16 times as long
assert times[2][1] < 9 * times[0][1], "this has changed"  # another rule: 4 times as long
PYTHON
# 800 slices: SlicesSplit 0.20 s, CastCast 0.01 s
# 1600 slices: SlicesSplit 0.76 s, CastCast 0.02 s
# 3200 slices: SlicesSplit 3.25 s, CastCast 0.04 s
