"""Cutting a matrix scorer in OpenVINO's form: rows from texts, attention from the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as operations
from openvino.passes import AnyInput, Matcher, WrapType

from dsd_trt.bundle.contract import LARGEST_LAMBDA
from dsd_trt.engine.pooled_attention import MOMENTS


def split(model: ov.Model, rows: int) -> tuple[ov.Model, ov.Model]:
    """Cut a model between nodes that depend on rows alone and nodes that depend on texts.

    Args:
        model: model with fixed sizes; must not be used afterwards.
        rows: number of its first inputs that belong to rows.

    Returns:
        Two models. The first maps row inputs to the tensors at the cut. The second maps these and
        the other inputs to the model's outputs.
    """
    parameters = model.get_parameters()
    _fix_shapes(model)
    of_texts = _downstream(model, parameters[rows:])
    of_rows_alone = _downstream(model, parameters[:rows]) - of_texts
    crossing: dict[tuple[str, int], tuple[Any, list[Any]]] = {}
    for node in model.get_ordered_ops():
        if node.get_friendly_name() in of_texts:
            for port in node.inputs():
                source = port.get_source_output()
                name = source.get_node().get_friendly_name()
                if name in of_rows_alone:
                    crossing.setdefault((name, source.get_index()), (source, []))[1].append(port)
    results, inputs = [], []
    for source, ports in crossing.values():
        results.append(operations.result(source))
        inputs.append(operations.parameter(source.get_shape(), source.get_element_type()))
        for port in ports:
            port.replace_source_output(inputs[-1].output(0))
    walk = ov.Model(results, parameters[:rows])
    return walk, ov.Model(model.get_results(), [*inputs, *parameters[rows:]])


@dataclass(frozen=True)
class LiftedAttention:
    """The pooled attention of one layer; see `PooledAttention`.

    Attributes:
        queries: friendly name of the model input that holds the queries.
        keys: output of the node that computes keys, (heads, texts * text_tokens, depth).
        root: output of the node that computes pooled values, (heads, texts, counted, images).
        pooled: model input that replaces `root`.
        lam: sharpness lambda of Eq. 3.
        moments: moments of the maps; None if the model reads none.
    """

    queries: str
    keys: Any
    root: Any
    pooled: Any
    lam: float
    moments: LiftedMoments | None


@dataclass(frozen=True)
class LiftedMoments:
    """The moments of one layer's maps; see `Moments`.

    Attributes:
        basis: their basis, FP32 (image_tokens, 3).
        root: output of the node that computes them, (heads, texts, counted, images, 3).
        sums: model input that replaces `root`.
    """

    basis: NDArray[Any]
    root: Any
    sums: Any


@dataclass(frozen=True)
class Lifted:
    """A model, with or without its attention.

    Attributes:
        inputs: friendly names of the model's inputs.
        layers: attention layers that were lifted out.
        parts: `[model]` if nothing was lifted. Otherwise two models: inputs to the keys of each
            lifted layer; pooled attention, moments and the remaining inputs to the outputs.
    """

    inputs: list[str]
    layers: list[LiftedAttention]
    parts: list[ov.Model]


def lift_attention(model: ov.Model, *, lift: bool = True) -> Lifted:
    """Lift the attention that `pool_attention` can compute out of a model.

    Args:
        model: the second model returned by `split`; must not be used afterwards.
        lift: whether to lift anything; False if `pool_attention` supports none of the layers.
    """
    inputs = [parameter.get_friendly_name() for parameter in model.get_parameters()]
    layers = _find_attention(model) if lift else []
    if not layers:
        return Lifted(inputs, [], [model])
    lifted = [(it.root, it.pooled) for it in layers]
    lifted += [(it.root, it.sums) for layer in layers if (it := layer.moments) is not None]
    for root, given in lifted:
        for port in root.get_target_inputs():
            port.replace_source_output(given.output(0))
    keys, results = [operations.result(layer.keys) for layer in layers], model.get_results()
    before = ov.Model(keys, _needed(model, keys))
    after = ov.Model(results, [*(given for _, given in lifted), *_needed(model, results)])
    return Lifted(inputs, layers, [before, after])


def _find_attention(model: ov.Model) -> list[LiftedAttention]:
    """Every product, softmax and mean of exponentials whose queries are a model input."""
    product = WrapType("opset13.MatMul")
    attention = WrapType("opset13.Softmax", [WrapType("opset13.Reshape", [product, AnyInput()])])
    start, step, axis, over = (WrapType("opset13.Constant") for _ in range(4))
    counted = WrapType("opset13.Slice", [attention, start, AnyInput(), step, axis])
    apart = WrapType("opset13.Reshape", [counted, AnyInput()])
    sharpness = WrapType("opset13.Constant")
    sharp = WrapType("opset13.Exp", [WrapType("opset13.Multiply", [apart, sharpness])])
    matcher = Matcher(WrapType("opset13.ReduceMean", [sharp, over]), "pooled attention")
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ReduceMean" or not matcher.match(node.output(0)):
            continue
        at, root = matcher.get_pattern_value_map(), node.output(0)
        keys, queries = at[product].get_node().input_values()
        constants = [at[it].get_node().data.ravel().tolist() for it in (start, step, axis, over)]
        sizes, lam = list(at[apart].get_shape()), at[sharpness].get_node().data.ravel().tolist()
        if (
            constants != [[0], [1], [2], [4]]
            or at[attention].get_node().get_attributes()["axis"] != 2
            or any(at[product].get_node().get_attributes().values())  # transposed inputs
            or queries.get_node().get_type_name() != "Parameter"
            or len(sizes) != 5
            or len(lam) != 1
            or not 0 < lam[0] <= LARGEST_LAMBDA
        ):
            continue
        heads, texts, _, images, image_tokens = sizes
        tokens, depth = at[attention].get_shape()[2], keys.get_shape()[-1]
        if (
            list(keys.get_shape()) == [heads, texts * tokens, depth]
            and list(queries.get_shape()) == [heads, depth, images * image_tokens]
            and list(root.get_shape()) == sizes[:4]
        ):
            name = queries.get_node().get_friendly_name()
            pooled = operations.parameter(root.get_shape(), ov.Type.f32)
            moments = _find_moments(at[sharp], image_tokens)
            found.append(LiftedAttention(name, keys, root, pooled, lam[0], moments))
    return found


def _find_moments(sharp: Any, image_tokens: int) -> LiftedMoments | None:
    """The moments of maps' exponentials, if the model computes them: (sharp - 1) @ basis."""
    for less in _readers(sharp, "Subtract"):
        if _constant(less.input_value(1)) != [1]:
            continue
        for product in _readers(less.output(0), "MatMul"):
            basis = product.input_value(1)
            if (
                basis.get_node().get_type_name() == "Constant"
                and basis.get_element_type() == ov.Type.f32
                and list(basis.get_shape()) == [image_tokens, MOMENTS]
                and not any(product.get_attributes().values())  # transposed inputs
            ):
                root = product.output(0)
                sums = operations.parameter(root.get_shape(), ov.Type.f32)
                return LiftedMoments(basis.get_node().data.copy(), root, sums)
    return None


def _readers(value: Any, kind: str) -> list[Any]:
    """Nodes of a type whose first input is a value."""
    ports = [port for port in value.get_target_inputs() if port.get_index() == 0]
    nodes = (port.get_node() for port in ports)
    return [it for it in nodes if it.get_type_name() == kind]


def _constant(value: Any) -> list[Any] | None:
    """The numbers of a value that is a constant."""
    node = value.get_node()
    return node.data.ravel().tolist() if node.get_type_name() == "Constant" else None


def _needed(model: ov.Model, results: Sequence[Any]) -> list[Any]:
    """Those inputs of a model that some results depend on."""
    found: set[str] = set()
    nodes = list(results)
    while nodes:
        node = nodes.pop()
        if (name := node.get_friendly_name()) not in found:
            found.add(name)
            nodes += [value.get_node() for value in node.input_values()]
    return [it for it in model.get_parameters() if it.get_friendly_name() in found]


def _fix_shapes(model: ov.Model) -> None:
    """Replace shape computations by constants, because they would otherwise cross the cut."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ShapeOf":
            shape = np.array(node.input_value(0).get_shape(), node.get_element_type().to_dtype())
            for port in node.output(0).get_target_inputs():
                port.replace_source_output(operations.constant(shape).output(0))


def _downstream(model: ov.Model, parameters: Sequence[Any]) -> set[str]:
    """Names of all nodes that depend on some inputs."""
    found = {parameter.get_friendly_name() for parameter in parameters}
    for node in model.get_ordered_ops():
        if any(value.get_node().get_friendly_name() in found for value in node.input_values()):
            found.add(node.get_friendly_name())
    return found


def largest(model: ov.Model) -> int:
    """Number of elements of the largest tensor the model computes."""
    return max(
        math.prod(output.get_shape())
        for node in model.get_ordered_ops()
        if node.get_type_name() != "Constant"
        for output in node.outputs()
    )
