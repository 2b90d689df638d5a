#!/usr/bin/env bash
# Which of an ONNX file's readers follow symbolic links to external data, as the Hugging Face cache has them.
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, Python 3.11.  Date: 2026-11-28.
# Expected: each reader either follows links or refuses them, whichever of the two files is the link.
# Seen: onnx and OpenVINO refuse weights that are a link. ONNX Runtime opens them if the .onnx is a link
# into the same folder too, and refuses them if the .onnx is a real file beside the link. A linked .onnx
# with real weights beside the link opens in all three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
cd "$folder"
ORT_DISABLE_TELEMETRY=1 venv/bin/python - <<'PYTHON'
import os
import shutil

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])], [weights],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
os.makedirs("blobs")
onnx.save(model, "blobs/m.onnx", save_as_external_data=True, location="w.data", size_threshold=0)

READERS = {
    "onnx": onnx.load,
    "onnxruntime": lambda path: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]),
    "openvino": lambda path: openvino.Core().compile_model(path, "CPU"),
}


def opened(*linked):
    shutil.rmtree("seen", ignore_errors=True)
    os.makedirs("seen")
    for name in ("m.onnx", "w.data"):
        if name in linked:
            os.symlink(f"../blobs/{name}", f"seen/{name}")
        else:
            shutil.copy(f"blobs/{name}", f"seen/{name}")
    result = []
    for name, read in READERS.items():
        try:
            read("seen/m.onnx")
            result.append(name)
        except Exception:
            pass
    return result


both, data, graph_alone = opened("m.onnx", "w.data"), opened("w.data"), opened("m.onnx")
print("both are links:", both)
print("the weights are a link:", data)
print("the .onnx is a link:", graph_alone)
assert both == ["onnxruntime"], "this has changed"
assert data == [], "this has changed"
assert graph_alone == ["onnx", "onnxruntime", "openvino"], "this has changed"
PYTHON
# both are links: ['onnxruntime']
# the weights are a link: []
# the .onnx is a link: ['onnx', 'onnxruntime', 'openvino']
