#!/usr/bin/env bash
# onnxscript's optimizer cuts an odd dimension in the wrong place: 2 and 3 become 3 and 2.
#
# Versions: onnxscript 0.7.2, onnx-ir 1.1.0, onnx 1.23.2, onnxruntime 1.32.0, Python 3.11.
# Date: 2026-11-29.
# The rule SlicesSplit of rewriter.rewrite and optimizer.optimize replaces x[:, :n // 2] and
# x[:, n // 2:] by Split(num_outputs=2), whose first part is the larger one if n is odd.
# Expected: the same results before and after.
# Seen: of [0, 1, 2, 3, 4], the parts [0, 1] and [2, 3, 4] become [0, 1, 2] and [3, 4], in
# onnx.reference and ONNX Runtime, without a message of onnxscript. The rule is applied only where
# the node of the second half comes before that of the first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxscript==0.7.2 onnx-ir==1.1.0 onnx==1.23.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxscript import optimizer, rewriter


def halves(width):
    cut = width // 2
    sizes = {"zero": 0, "cut": cut, "end": width, "axis": 1}
    constants = [numpy_helper.from_array(np.array([it], np.int64), n) for n, it in sizes.items()]
    nodes = [
        helper.make_node("Slice", ["x", "cut", "end", "axis"], ["second"]),
        helper.make_node("Slice", ["x", "zero", "cut", "axis"], ["first"]),
    ]
    info = helper.make_tensor_value_info
    outputs = [
        info("first", TensorProto.FLOAT, [1, cut]),
        info("second", TensorProto.FLOAT, [1, width - cut]),
    ]
    inputs = [info("x", TensorProto.FLOAT, [1, width])]
    graph = helper.make_graph(nodes, "halves", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


onnxruntime.set_default_logger_severity(4)
for width in (4, 5):
    x = {"x": np.arange(width, dtype=np.float32)[None]}
    model = halves(width)
    right = [it[0].tolist() for it in ReferenceEvaluator(model).run(None, x)]
    for change in (rewriter.rewrite, optimizer.optimize):
        changed = change(onnx.ModelProto.FromString(model.SerializeToString()))
        session = onnxruntime.InferenceSession(changed.SerializeToString())
        found = [
            [it[0].tolist() for it in run(None, x)]
            for run in (ReferenceEvaluator(changed).run, session.run)
        ]
        print(change.__name__, right, found[0], [it.op_type for it in changed.graph.node])
        assert found[0] == found[1], "this has changed"
        assert (found[0] == right) == (width == 4), "this has changed"
PYTHON
# rewrite [[0.0, 1.0], [2.0, 3.0]] [[0.0, 1.0], [2.0, 3.0]] ['Split']
# optimize [[0.0, 1.0], [2.0, 3.0]] [[0.0, 1.0], [2.0, 3.0]] ['Split']
# rewrite [[0.0, 1.0], [2.0, 3.0, 4.0]] [[0.0, 1.0, 2.0], [3.0, 4.0]] ['Split']
# optimize [[0.0, 1.0], [2.0, 3.0, 4.0]] [[0.0, 1.0, 2.0], [3.0, 4.0]] ['Split']
