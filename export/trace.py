"""Trace a PyTorch module to an ONNX graph, with the dynamic dimensions of its signature."""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.errors import ModelError
from dsd_trt.export.group_norm import flatten_group_norms
from dsd_trt.export.weights import SMALL, WeightFile

OPSET = 20
"""Version 20 has LayerNormalization and Gelu; the Attention operator of version 23 would hide the
attention map from NVIDIA's parser."""

_EXAMPLE_BATCH = 2  # the tracer takes a batch of 1 for a constant


def trace(module: nn.Module, graph: Graph, weights: WeightFile) -> onnx.ModelProto:
    """Trace a module to an ONNX graph.

    The graph's precision is that of the module's code and weights; nothing is converted
    afterwards. The arithmetic is unchanged too, only shapes are (`flatten_group_norms`).

    Args:
        module: module whose inputs and outputs are the tensors that `graph` declares.
        graph: signature with names, types and shapes of inputs and outputs.
        weights: weight file that takes the weights directly from the module, without a second
            copy in memory.

    Returns:
        The graph without traces of this machine. Nodes are named after their modules, such as
        "unet.conv_in/Conv". A Cast follows each weight that is stored in FP16 and used in FP32;
        engines fold it when they load the graph.

    Raises:
        ModelError: the traced inputs or outputs differ from the signature.
    """
    inputs = tuple(_example(spec) for spec in graph.inputs)
    with _quiet(), _without_pairs(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=tuple(
                {
                    place: torch.export.Dim.DYNAMIC
                    for place, size in enumerate(spec.shape)
                    if isinstance(size, str)
                }
                for spec in graph.inputs
            ),
            opset_version=OPSET,
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            verbose=False,
        )
        assert program is not None  # only the older exporter returns None
        halved = _store(program.model, weights)
        model = program.model_proto
    flatten_group_norms(model)
    _name_nodes(model)
    _forget_origin(model)
    widen_stored(model, halved)
    _declare(model, graph)
    return model


def _store(model: ir.Model, weights: WeightFile) -> set[str]:
    """Move a graph's weights into the file; returns the names of FP32 weights stored in FP16."""
    halved = set()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < SMALL:
            continue
        stored = weights.store(name, tensor.numpy())
        value.const_value = stored
        if stored.dtype != tensor.dtype:
            halved.add(name)
    return halved


def widen_stored(model: onnx.ModelProto, names: set[str]) -> None:
    """Add Casts to a graph that computes in FP32 with weights stored in FP16.

    Args:
        model: ONNX graph whose nodes read the weights by `names`; changed in place.
        names: names of the initializers that are stored in FP16.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name in names:
            name, tensor.name = tensor.name, f"{tensor.name}.fp16"
            casts.append(
                helper.make_node(
                    "Cast", [tensor.name], [name], name=f"{name}/Cast", to=TensorProto.FLOAT
                )
            )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _example(spec: TensorSpec) -> Tensor:
    """Zeros of the declared type and shape, which is all that tracing depends on."""
    return torch.zeros(spec.of_batch(_EXAMPLE_BATCH), dtype=getattr(torch, spec.dtype))


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name every node MODULE/OPERATOR, numbered if a module has several of a kind."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        properties = {entry.key: entry.value for entry in node.metadata_props}
        # From the root, "", through the modules' full names, to the operation's own name.
        scopes = ast.literal_eval(properties.get("pkg.torch.onnx.name_scopes", "[]"))
        path = scopes[-2] if len(scopes) > 1 and "." in scopes[-2] else ""
        name = f"{path}/{node.op_type}".lstrip("/")
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def module_of(node: onnx.NodeProto) -> str:
    """Path of the module that a traced node comes from; "" is the traced module itself."""
    path: str = node.name.rpartition("/")[0]
    return path


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop stack traces and file paths, which PyTorch's exporter attaches to everything."""
    model.doc_string = model.graph.doc_string = ""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del item.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
    for initializer in graph.initializer:
        del initializer.metadata_props[:]


def _declare(model: onnx.ModelProto, graph: Graph) -> None:
    """Give dynamic dimensions the contract's names.

    Raises:
        ModelError: inputs or outputs differ from the contract in anything else.
    """
    names = {}
    for values, specs in ((model.graph.input, graph.inputs), (model.graph.output, graph.outputs)):
        for value, spec in zip(values, specs, strict=True):
            tensor = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            sizes = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
            expected = tuple(
                size if isinstance(wanted, str) and isinstance(size, str) else wanted
                for size, wanted in zip(sizes, spec.shape, strict=False)
            )
            if (value.name, dtype, sizes) != (spec.name, spec.dtype, expected):
                raise ModelError(
                    f"the model's parts do not fit together: {value.name} is {dtype} {sizes}, "
                    f"where {spec.dtype} {spec.shape} is expected"
                )
            for dim, wanted in zip(tensor.shape.dim, spec.shape, strict=True):
                if isinstance(wanted, str):
                    names[dim.dim_param] = wanted
                    dim.dim_param = wanted
    for value in model.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log messages and warnings of PyTorch's exporter off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_pairs() -> Iterator[None]:
    """Leave out the exporter's rewrite of two Slices as a Split, whose search is quadratic.

    For each node it lists all nodes, whether that node is a Slice or not: minutes for a U-Net. Its
    only effect would be another operator for the same values. It is a private setting of
    onnxscript's; where another version has none, export is slow and not wrong.
    """
    from onnxscript import rewriter  # here, because PyTorch's exporter loads it late as well

    known = "_DEFAULT_REWRITE_RULES"
    rules = getattr(rewriter, known, None)
    if not isinstance(rules, tuple):
        yield
        return
    setattr(rewriter, known, tuple(it for it in rules if it.name != "SlicesSplit"))
    try:
        yield
    finally:
        setattr(rewriter, known, rules)
