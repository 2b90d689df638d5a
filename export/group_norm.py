"""Group normalisation in a form that CPU engines run fast."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper


def flatten_group_norms(model: onnx.ModelProto) -> None:
    """Apply scale and shift to all pixels of a channel in one row: (B, C, 1, h * w).

    The traced graph applies them to (B, C, h, w), with one scale and one shift per channel.
    OpenVINO then works in steps of w, which takes ten times as long at w = 4 (docs/speed.md).

    Args:
        model: traced ONNX graph with the shape of every computed value; changed in place.
    """
    graph = model.graph
    shapes = {
        value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)
    }
    readers = {name: node for node in graph.node for name in node.input}
    restored: dict[str, onnx.NodeProto] = {}  # Reshape back, by the name of the flat value
    for norm in graph.node:
        if norm.op_type != "InstanceNormalization":
            continue
        # InstanceNormalization -> Reshape to the input's shape -> Mul (scale) -> Add (shift)
        reshape = readers[norm.output[0]]
        shift = readers[readers[reshape.output[0]].output[0]]
        whole = shift.output[0]
        channels, *pixels = (dim.dim_value for dim in shapes[whole][1:])
        if len(pixels) < 2:  # in a VAE's attention the pixels are one row already
            continue
        # (B, C, h, w) -> (B, C, 1, h * w) before scale and shift, and back after them
        reshape.input[1] = _constant(graph, f"{whole}.rows", [0, channels, 1, math.prod(pixels)])
        shift.output[0] = f"{whole}.flat"
        restore = helper.make_node(
            "Reshape",
            [shift.output[0], _constant(graph, f"{whole}.shape", [0, channels, *pixels])],
            [whole],
        )
        restore.metadata_props.extend(shift.metadata_props)
        restored[shift.output[0]] = restore
    read = {name for node in graph.node for name in node.input}
    nodes = []
    for node in graph.node:
        if node.op_type != "Shape" or node.output[0] in read:
            nodes += [node, *(restored[name] for name in node.output if name in restored)]
    del graph.node[:]
    graph.node.extend(nodes)


def _constant(graph: onnx.GraphProto, name: str, sizes: list[int]) -> str:
    """Add a Reshape target to the graph's constants and return its name; 0 keeps a dimension."""
    graph.initializer.append(numpy_helper.from_array(np.array(sizes), name))
    return name
