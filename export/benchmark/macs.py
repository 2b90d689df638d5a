"""Multiply-accumulates (MACs) of an ONNX graph, counted from the graph itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from dsd_trt.bundle.contract import Graph

Shapes = Mapping[str, tuple[int, ...]]


def count_macs(path: Path, graph: Graph, **sizes: int) -> int:
    """Count the multiply-accumulates (MACs) of matrix products and convolutions.

    Args:
        path: ONNX file of the graph; its weights are not read.
        graph: signature of the graph in the bundle's contract.
        sizes: sizes of dynamic dimensions by name; the default of each is 1.

    Raises:
        ValueError: the size of a product is not known.
    """
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]  # it has names for dynamic dimensions; inference gives numbers
    given = {
        spec.name: tuple(sizes.get(it, 1) if isinstance(it, str) else it for it in spec.shape)
        for spec in graph.inputs
    }
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, given[value.name], strict=True):
            dim.Clear()
            dim.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    _fold_sizes(model, given)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(
            dim.dim_value if dim.HasField("dim_value") else 0 for dim in dims
        )
    return sum(_macs(node, shapes) for node in model.graph.node)


def _fold_sizes(model: onnx.ModelProto, shapes: Shapes) -> None:
    """Fold what is computed from input sizes into constants, which shape inference may miss."""
    graph = model.graph
    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.INT64 and tensor.data_location != TensorProto.EXTERNAL
    }
    nodes = []
    for node in graph.node:
        feeds = {name: known[name] for name in node.input if name in known}
        if node.op_type == "Shape" and node.input[0] in shapes:
            feeds = {node.input[0]: np.broadcast_to(np.int64(0), shapes[node.input[0]])}
        if not node.input or len(feeds) < len(set(node.input)):
            nodes.append(node)
            continue
        for name, value in zip(node.output, ReferenceEvaluator(node).run(None, feeds), strict=True):
            known[name] = np.asarray(value)
            graph.initializer.append(numpy_helper.from_array(known[name], name))
    del graph.node[:]
    graph.node.extend(nodes)


def _macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """MACs of one node: the size of its output times the number of products per element."""
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return 0
    made = math.prod(shapes.get(node.output[0], (0,)))
    first, second = (shapes.get(name, (0,)) for name in node.input[:2])
    if node.op_type == "Conv":
        summed = math.prod(second[1:])  # channels per group * kernel height * kernel width
    elif node.op_type == "Gemm":
        transposed = any(it.name == "transA" and it.i for it in node.attribute)
        summed = first[0] if transposed else first[-1]
    else:
        summed = first[-1]
    if made * summed == 0:
        raise ValueError(f"the size of {node.name} cannot be told from the graph")
    return made * summed
