"""Storing a traced graph: lossless compression, metadata, weights beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dsd_trt.manifest import Manifest
from dsd_trt.schema import to_plain

METADATA_PREFIX = "dsd_trt."
_SMALL = 1024  # bytes; smaller constants are not worth a Cast node, and stay in the ONNX file


def store_losslessly(model: onnx.ModelProto) -> None:
    """Store as FP16, with a Cast back, every FP32 constant that survives the round trip exactly.

    Checkpoints that were published in FP16 halve in size and lose nothing. Engines fold the Casts
    when they load the graph.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        full = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        back = half.astype(np.float32)
        if full.nbytes < _SMALL or not np.array_equal(back.view(np.uint32), full.view(np.uint32)):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
        casts.append(
            helper.make_node(
                "Cast", [tensor.name], [name], name=f"{name}/Cast", to=TensorProto.FLOAT
            )
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def stamp(model: onnx.ModelProto, name: str, manifest: Manifest) -> None:
    """Write what `bundle.json` says about a graph into the graph, so that it explains itself.

    Args:
        model: one of the bundle's graphs.
        name: which.
        manifest: of the bundle; its files and parity figures come after the graphs and stay out.
    """
    plain = to_plain(manifest)
    for later in ("files", "parity"):
        del plain[later]
    plain["graph"] = {"name": name, **plain.pop("graphs")[name]}
    helper.set_model_props(
        model, {METADATA_PREFIX + key: json.dumps(value) for key, value in plain.items()}
    )


def save(model: onnx.ModelProto, path: Path, data: str) -> None:
    """Write a graph and, in a file of its own beside it, its weights.

    Args:
        model: weights inside; afterwards they are references to the file.
        path: the ONNX file.
        data: name of the weights' file; a single file can hold more than an ONNX file's 2 GB.
    """
    weights = path.parent / data
    weights.unlink(missing_ok=True)  # onnx would append to it
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data,
        size_threshold=_SMALL,
    )
    weights.chmod(path.stat().st_mode)  # onnx makes it unreadable for everyone else
