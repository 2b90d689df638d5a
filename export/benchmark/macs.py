"""How much arithmetic a graph does, counted from the graph itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import onnx

from dsd_trt.contract import Graph

Shapes = Mapping[str, tuple[int, ...]]


def count_macs(path: Path, graph: Graph, **sizes: int) -> int:
    """Multiplications with addition of matrix products and convolutions.

    Args:
        path: the ONNX file; its weights are not read.
        graph: its signature.
        sizes: of its dynamic dimensions, by name; of those not said, 1.

    Raises:
        ValueError: a product's size cannot be told.
    """
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]  # has names of dynamic dimensions, where numbers are wanted
    for value, spec in zip(model.graph.input, graph.inputs, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            dim.Clear()
            dim.dim_value = sizes.get(size, 1) if isinstance(size, str) else size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(
            dim.dim_value if dim.HasField("dim_value") else 0 for dim in dims
        )
    return sum(_macs(node, shapes) for node in model.graph.node)


def _macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Of one node: for every number it makes, how many products are summed."""
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return 0
    made = math.prod(shapes.get(node.output[0], (0,)))
    first, second = (shapes.get(name, (0,)) for name in node.input[:2])
    if node.op_type == "Conv":
        summed = math.prod(second[1:])  # channels of a group, and the kernel
    elif node.op_type == "Gemm":
        transposed = any(it.name == "transA" and it.i for it in node.attribute)
        summed = first[0] if transposed else first[-1]
    else:
        summed = first[-1]
    if made * summed == 0:
        raise ValueError(f"the size of {node.name} cannot be told from the graph")
    return made * summed
