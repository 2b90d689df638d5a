#!/usr/bin/env bash
# onnx and ONNX Runtime: a graph that passes the full check is refused for the names of its nodes.
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4, Python 3.11, Linux x86-64.  Date: 2026-11-28.
# Expected: names of nodes are labels, as ONNX's specification has it that they may be empty; or
# else onnx.checker refuses two equal ones.
# Seen: onnx.checker with full_check and onnx's reference evaluator take them, ONNX Runtime refuses
# to load the graph. Two nodes without names are fine.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 'numpy==2.4.*'
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

x = np.array([-2, 3], np.float32)


def made(name):
    nodes = [
        helper.make_node("Abs", ["x"], ["a"], name=name),
        helper.make_node("Neg", ["a"], ["y"], name=name),
    ]
    ends = [[helper.make_tensor_value_info(it, TensorProto.FLOAT, [2])] for it in ("x", "y")]
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    assert ReferenceEvaluator(model).run(None, {"x": x})[0].tolist() == [-2, -3]
    return model.SerializeToString()


provider = ["CPUExecutionProvider"]
unnamed = onnxruntime.InferenceSession(made(""), providers=provider).run(None, {"x": x})[0]
print("without names:", unnamed.tolist())
try:
    onnxruntime.InferenceSession(made("n"), providers=provider)
except Exception as error:
    print("with equal names:", str(error)[:160])
    assert "node name" in str(error), "this has changed"
else:
    raise SystemExit("this has changed: the graph is loaded")
PYTHON
