"""Find the first layer at which a graph differs from the module it was traced from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.engine.onnxruntime.cpu import OnnxRuntimeEngine
from dsd_trt.export.trace import module_of


@dataclass(frozen=True)
class Difference:
    """Difference between a layer's output in the graph and in the module.

    Attributes:
        layer: path of the layer in the traced module.
        relative: largest absolute difference divided by the module's largest absolute value;
            infinity if the graph's output is not finite.
    """

    layer: str
    relative: float


def layer_differences(
    module: nn.Module, feeds: Mapping[str, NDArray[Any]], path: Path, graph: Graph
) -> list[Difference]:
    """Run a module and its graph on the same inputs and compare layer by layer.

    Args:
        module: FP32 module the graph was traced from.
        feeds: inputs of the module by name, in the order of its arguments.
        path: ONNX file of the graph; its nodes carry the names that `trace` gives.
        graph: signature of the graph in the bundle's contract.

    Returns:
        One difference per layer, in order of execution.
    """
    expected = _run_module(module, feeds)
    model = onnx.load(path, load_external_data=False)
    # A layer's output is what the last of its nodes computes.
    value_of = {module_of(node): node.output[0] for node in model.graph.node}
    value_of = {layer: value_of[layer] for layer in expected if layer in value_of}
    got = _run_graph(model, path, graph, feeds, set(value_of.values()))
    return [
        Difference(layer, _relative(got[value], expected[layer]))
        for layer, value in value_of.items()
        if value in got and got[value].shape == expected[layer].shape
    ]


def _run_module(module: nn.Module, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Outputs of all leaf layers that run exactly once, in order of execution."""
    outputs: dict[str, list[NDArray[Any]]] = {}

    def remember(layer: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.setdefault(layer, []).append(output.numpy())

        return hook

    leaves = [(name, part) for name, part in module.named_modules() if not any(part.children())]
    hooks = [part.register_forward_hook(remember(name)) for name, part in leaves]
    try:
        with torch.no_grad():
            module(*(torch.from_numpy(array) for array in feeds.values()))
    finally:
        for handle in hooks:
            handle.remove()
    return {layer: seen[0] for layer, seen in outputs.items() if len(seen) == 1}


def _run_graph(
    model: onnx.ModelProto,
    path: Path,
    graph: Graph,
    feeds: Mapping[str, NDArray[Any]],
    values: set[str],
) -> dict[str, NDArray[Any]]:
    """Run the graph with inner values as further outputs; returns all outputs as float32."""
    inner = [value for value in model.graph.value_info if value.name in values]
    model.graph.output.extend(inner)
    specs = tuple(_spec(value) for value in inner)
    beside = path.with_suffix(".inner.onnx")  # same folder: the weight file's path is relative
    try:
        onnx.save_model(model, beside)
        engine = OnnxRuntimeEngine(
            beside, dataclasses.replace(graph, outputs=(*graph.outputs, *specs))
        )
        outputs = engine.run({s.name: feeds[s.name].astype(s.dtype) for s in graph.inputs})
    finally:
        beside.unlink(missing_ok=True)
    return {name: array.astype(np.float32) for name, array in outputs.items()}


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(
        value.name, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    )


def _relative(got: NDArray[Any], expected: NDArray[Any]) -> float:
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-6))
