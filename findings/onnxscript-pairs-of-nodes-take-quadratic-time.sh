#!/usr/bin/env bash
# onnxscript's rule for two Slices tries all pairs of nodes of a graph, even if none is a Slice.
#
# Versions: onnxscript 0.7.2, onnx-ir 1.1.0, onnx 1.23.2, Python 3.11.  Date: 2026-11-29.
# Expected: rewriting takes time in proportion to the number of nodes, as other rules do.
# Seen: with the rule SlicesSplit, graphs of 800, 1,600 and 3,200 Relu nodes take 0.15, 0.6 and 2.5 s:
# four times as long for twice as many. CastCast takes 0.01, 0.02 and 0.03 s. rewriter.rewrite and
# optimizer.optimize have the rule, and so has torch.onnx.export: minutes for a U-Net.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxscript==0.7.2 onnx-ir==1.1.0 onnx==1.23.2
"$folder/venv/bin/python" - <<'PYTHON'
import time

import onnx_ir
from onnx import TensorProto, helper
from onnxscript import rewriter
from onnxscript.rewriter.rules.common import cast_cast_rule, slice_split_rule


def of_relu(count):
    def info(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])

    nodes = [helper.make_node("Relu", ["x"], [f"y{n}"]) for n in range(count)]
    outputs = [info(f"y{n}") for n in range(count)]
    graph = helper.make_graph(nodes, "relu", [info("x")], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return onnx_ir.serde.deserialize_model(model)


def seconds(count, rule):
    model = of_relu(count)
    start = time.process_time()
    rewriter.rewrite(model, pattern_rewrite_rules=[rule])
    took = time.process_time() - start
    assert [node.op_type for node in model.graph] == ["Relu"] * count
    return took


seconds(100, slice_split_rule)  # imports
times = [(seconds(it, slice_split_rule), seconds(it, cast_cast_rule)) for it in (800, 1600, 3200)]
for count, (slices, casts) in zip((800, 1600, 3200), times):
    print(f"{count} nodes: SlicesSplit {slices:.2f} s, CastCast {casts:.2f} s")
assert times[2][0] > 9 * times[0][0], "this has changed"  # 4 times as many: 16 times as long
assert times[2][1] < 9 * times[0][1], "this has changed"  # another rule: 4 times as long
PYTHON
# 800 nodes: SlicesSplit 0.15 s, CastCast 0.01 s
# 1600 nodes: SlicesSplit 0.61 s, CastCast 0.02 s
# 3200 nodes: SlicesSplit 2.48 s, CastCast 0.03 s
