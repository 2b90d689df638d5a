"""Emulate real FP16 arithmetic on a CPU that computes FP16 graphs in FP32.

ONNX Runtime's CPU kernels run FP16 graphs in FP32, which hides overflow and rounding errors. Here
a pair of Casts rounds every FP16 value of a graph. FP32 islands are left alone.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from dsd_trt.export.trace import widen_stored

_HALF, _FULL = TensorProto.FLOAT16, TensorProto.FLOAT

# These operators only move values, which are rounded already.
MOVES = {"Concat", "Expand", "Gather", "GatherND", "Reshape", "Slice", "Split", "Transpose"}
MOVES |= {"Squeeze", "Unsqueeze", "Where"}


def emulate_half(model: onnx.ModelProto) -> None:
    """Turn an FP16 graph, in place, into an FP32 graph that rounds where the FP16 graph would.

    Widens like `widen_half`. Then Cast(FLOAT16) and Cast(FLOAT) follow every node that computed
    a FLOAT16 value. They round it, and overflow becomes infinity. Values keep their names.

    Args:
        model: ONNX graph in which every value has a type, as `trace` returns it.
    """
    half = widen_half(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type in MOVES:
            continue
        for i, name in enumerate(node.output):
            if name in half:
                node.output[i] = f"{name}.unrounded"
                nodes += _round(node.output[i], name, node.name)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def widen_half(model: onnx.ModelProto) -> set[str]:
    """Turn an FP16 graph, in place, into one that computes the same in FP32.

    Every FLOAT16 tensor becomes FLOAT, including inputs and outputs. Weights stay stored in FP16
    and are widened by Casts.

    Args:
        model: ONNX graph in which every value has a type, as `trace` returns it.

    Returns:
        Names of the values that were FLOAT16, weights excluded.
    """
    graph = model.graph
    half = set()
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type == _HALF:
            half.add(value.name)
            value.type.tensor_type.elem_type = _FULL
    for node in graph.node:
        _widen_attributes(node)
    widen_stored(model, {tensor.name for tensor in graph.initializer if tensor.data_type == _HALF})
    return half


def _round(source: str, target: str, owner: str) -> list[onnx.NodeProto]:
    """Two Casts, named after the node they follow so that `module_of` finds its module."""
    half, name = f"{target}.half", f"{owner}_{target}"
    return [
        helper.make_node("Cast", [source], [half], name=f"{name}_rounded", to=_HALF),
        helper.make_node("Cast", [half], [target], name=f"{name}_widened", to=_FULL),
    ]


def _widen(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)


def _widen_attributes(node: onnx.NodeProto) -> None:
    """Change FLOAT16 constants and target types in a node's attributes to FLOAT."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _HALF:
            attribute.t.CopyFrom(_widen(attribute.t))
        if attribute.name in ("to", "dtype") and attribute.i == _HALF:
            attribute.i = _FULL
