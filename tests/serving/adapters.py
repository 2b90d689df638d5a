"""A bundle whose pair scorer takes an adapter: its scores are multiplied by the sum of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dsd_trt import Bundle
from dsd_trt.bundle.contract import TensorSpec
from dsd_trt.bundle.folder import write_bundle
from dsd_trt.bundle.manifest import AdapterInput


def feed_adapter(bundle: Bundle, adapter: NDArray[np.float32]) -> Bundle:
    """Give a bundle an adapter as an input."""
    scorer = bundle.manifest.graphs["pair_scorer"]
    path = bundle.path(scorer.file)
    model = onnx.load(path)
    (producer,) = (node for node in model.graph.node if "score" in node.output)
    producer.output[0] = "unadapted"
    model.graph.node.extend(
        [
            helper.make_node("ReduceSum", ["adapter"], ["factor"], keepdims=0),
            helper.make_node("Mul", ["unadapted", "factor"], ["score"]),
        ]
    )
    shape = (len(adapter),)
    model.graph.input.append(helper.make_tensor_value_info("adapter", TensorProto.FLOAT, shape))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    adapter.astype("<f4").tofile(bundle.path("adapter.bin"))
    fed = replace(scorer, inputs=(*scorer.inputs, TensorSpec("adapter", "float32", shape)))
    manifest = replace(
        bundle.manifest,
        graphs={**bundle.manifest.graphs, "pair_scorer": fed},
        adapter=AdapterInput("adapter.bin", {"prompts": shape}),
    )
    return write_bundle(bundle.folder, manifest)
