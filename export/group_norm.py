"""Group normalisation in a form that engines on CPUs are fast at."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper


def flatten_group_norms(model: onnx.ModelProto) -> None:
    """Let scale and shift work on rows of all pixels of a channel: (B, C, 1, h w).

    Traced, they work on (B, C, h, w), with one scale and one shift a channel. OpenVINO takes that
    in steps of w, which at 4 pixels costs ten times as much (docs/speed.md).

    Args:
        model: as traced; has the shapes of what its nodes make.
    """
    graph = model.graph
    shapes = {
        value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)
    }
    readers = {name: node for node in graph.node for name in node.input}
    restored: dict[str, onnx.NodeProto] = {}  # by the name of what is flat before
    for norm in graph.node:
        if norm.op_type != "InstanceNormalization":
            continue
        # Normalised groups get the shape of what came in, then scale and shift.
        reshape = readers[norm.output[0]]
        shift = readers[readers[reshape.output[0]].output[0]]
        whole = shift.output[0]
        channels, *pixels = (dim.dim_value for dim in shapes[whole][1:])
        if len(pixels) < 2:  # the attention of a VAE has them in a row already
            continue
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
    """Add a shape to the graph's constants; 0 stands for the size that was there before."""
    graph.initializer.append(numpy_helper.from_array(np.array(sizes), name))
    return name
