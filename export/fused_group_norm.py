"""Group normalisation with its activation as one operator of ONNX Runtime, channels last."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dsd_trt.export.fused_attention import DOMAIN
from dsd_trt.export.graph_index import GraphIndex, attribute, fuse
from dsd_trt.export.trace import module_of

_NHWC, _NCHW = [0, 2, 3, 1], [0, 3, 1, 2]
_WIDEST = 256  # channels of a group; the kernel takes them in pairs


@dataclass(frozen=True)
class _GroupNorm:
    """One group normalisation of the traced graph, with the SiLU that follows it, if any.

    Attributes:
        pixels: name of the value that is normalised, (batch, C, h, w).
        groups: number of groups of channels.
        epsilon: number that is added to the variance.
        scale: constant with the scale of each channel, (C, 1, 1).
        shift: constant with the shift of each channel, (C, 1, 1).
        silu: whether a SiLU follows.
        tokens: whether pixels become image tokens afterwards, (batch, h * w, C).
        result: name of the value after all of it, (batch, C, h, w) without `tokens`.
        module: path of the last module in it.
    """

    pixels: str
    groups: int
    epsilon: float
    scale: TensorProto
    shift: TensorProto
    silu: bool
    tokens: bool
    result: str
    module: str


def fuse_group_norms(model: onnx.ModelProto) -> int:
    """Replace group normalisations by nodes of `com.microsoft.GroupNorm`, in place.

    The operator's kernel on CUDA takes channels last, scale and shift in FP32, and an even number
    of channels per group; other normalisations are left alone. A Transpose stands before each node
    and, unless pixels become image tokens, after it. ONNX Runtime cancels them against those of
    convolutions if its CUDA provider prefers channels last (`prefer_nhwc`).

    Args:
        model: graph as `trace` returns it.

    Returns:
        Number of the nodes that were added.
    """
    return fuse(model.graph, "InstanceNormalization", _match, partial(_fused, model.graph))


def write_out_group_norms(model: onnx.ModelProto) -> None:
    """Replace the nodes of `com.microsoft.GroupNorm` by their definition in ONNX, in place.

    For engines without a kernel, such as ONNX Runtime on the CPU.

    Args:
        model: form whose group normalisations read FP32 values.
    """
    graph = model.graph
    index = GraphIndex(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        fused = node.domain == DOMAIN and node.op_type == "GroupNorm"
        nodes += _written_out(graph, index, node) if fused else [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _match(index: GraphIndex, norm: onnx.NodeProto) -> _GroupNorm | None:
    """The group normalisation around an InstanceNormalization; None if it has no kernel."""
    grouped = index.source(norm.input[0], "Reshape")
    ungrouped = index.reader(norm.output[0], "Reshape")
    scaled = None if ungrouped is None else index.reader(ungrouped.output[0], "Mul")
    shifted = None if scaled is None else index.reader(scaled.output[0], "Add")
    restored = None if shifted is None else index.reader(shifted.output[0], "Reshape")
    if grouped is None or scaled is None or shifted is None or restored is None:
        return None
    shape = index.shape(grouped.input[0])
    scale, shift = (index.stored(it.input[1]) for it in (scaled, shifted))
    ones, zeros = (index.constant(it) for it in norm.input[1:])
    if len(shape) != 4 or index.shape(restored.output[0]) != shape or not isinstance(shape[1], int):
        return None
    if scale is None or shift is None or ones is None or zeros is None:
        return None
    channels, groups = shape[1], ones.size
    per_group = channels // groups
    if per_group % 2 or per_group > _WIDEST or not ((ones == 1).all() and (zeros == 0).all()):
        return None
    if not list(scale.dims) == list(shift.dims) == [channels, 1, 1]:
        return None
    result = restored.output[0]
    silu, tokens = _silu(index, result), _tokens(index, result)
    last = silu or tokens or restored
    return _GroupNorm(
        pixels=grouped.input[0],
        groups=groups,
        epsilon=attribute(norm, "epsilon", 1e-5),
        scale=scale,
        shift=shift,
        silu=silu is not None,
        tokens=tokens is not None,
        result=last.output[0],
        module=module_of(silu or norm),
    )


def _silu(index: GraphIndex, value: str) -> onnx.NodeProto | None:
    """The node that ends a SiLU, x * sigmoid(x), if that is all that reads a value."""
    readers = {node.op_type: node for node in index.readers(value)}
    if len(index.readers(value)) != 2 or readers.keys() != {"Sigmoid", "Mul"}:
        return None
    gate = readers["Sigmoid"].output[0]
    product = index.reader(gate, "Mul")
    return product if product is not None and {*product.input} == {value, gate} else None


def _tokens(index: GraphIndex, value: str) -> onnx.NodeProto | None:
    """The node that makes image tokens of pixels, if that is all that reads them."""
    rows = index.reader(value, "Reshape")  # (batch, C, h * w)
    turned = None if rows is None else index.reader(rows.output[0], "Transpose")
    if turned is None or attribute(turned, "perm") != [0, 2, 1]:
        return None
    batch, channels, *_ = index.shape(value)
    shape = index.shape(turned.output[0])
    return turned if len(shape) == 3 and shape[0] == batch and shape[2] == channels else None


def _fused(graph: onnx.GraphProto, index: GraphIndex, norm: _GroupNorm) -> list[onnx.NodeProto]:
    name, kind = f"{norm.module}/GroupNorm_{norm.result}", index.kind(norm.pixels)
    batch, channels, height, width = index.shape(norm.pixels)
    last, normed = f"{norm.result}.pixels", f"{norm.result}.normed"
    for value in (last, normed):
        sizes = [batch, height, width, channels]
        graph.value_info.append(helper.make_tensor_value_info(value, kind, sizes))
    casts, parameters = list[onnx.NodeProto](), list[str]()
    for tensor, role in ((norm.scale, "gamma"), (norm.shift, "beta")):
        row = graph.initializer.add()
        row.CopyFrom(tensor)  # of a stored weight only the reference
        row.name = f"{norm.result}.{role}"
        del row.dims[1:]
        parameters.append(row.name)
        if row.data_type != TensorProto.FLOAT:
            wide = f"{row.name}.wide"
            casts.append(_node("Cast", [row.name], wide, name, to=TensorProto.FLOAT))
            graph.value_info.append(
                helper.make_tensor_value_info(wide, TensorProto.FLOAT, [channels])
            )
            parameters[-1] = wide
    fused = helper.make_node(
        "GroupNorm",
        [last, *parameters],
        [normed],
        name=name,
        domain=DOMAIN,
        activation=int(norm.silu),
        channels_last=1,
        epsilon=norm.epsilon,
        groups=norm.groups,
    )
    if norm.tokens:
        shape = f"{norm.result}.shape"
        target = np.array([0, *index.shape(norm.result)[1:]])  # 0 keeps the batch
        graph.initializer.append(numpy_helper.from_array(target, shape))
        back = _node("Reshape", [normed, shape], norm.result, name)
    else:
        back = _node("Transpose", [normed], norm.result, name, perm=_NCHW)
    before = _node("Transpose", [norm.pixels], last, name, perm=_NHWC)
    return [*casts, before, fused, back]


def _written_out(
    graph: onnx.GraphProto, index: GraphIndex, norm: onnx.NodeProto
) -> list[onnx.NodeProto]:
    pixels, gamma, beta = norm.input
    result, groups = norm.output[0], attribute(norm, "groups")
    _, height, width, channels = (
        int(it) if isinstance(it, int) else 0 for it in index.shape(pixels)
    )
    constants = {
        "apart": np.array([0, height * width, groups, channels // groups]),
        "whole": np.array([0, height, width, channels]),
        "axes": np.array([1, 3]),
        "epsilon": np.array(attribute(norm, "epsilon", 1e-5), np.float32),
    }
    for key, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(value, f"{result}.{key}"))

    def step(operator: str, inputs: list[str], output: str) -> onnx.NodeProto:
        return _node(operator, inputs, f"{result}.{output}", norm.name)

    def at(*outputs: str) -> list[str]:
        return [f"{result}.{output}" for output in outputs]

    nodes = [
        step("Reshape", [pixels, *at("apart")], "x"),  # (batch, h * w, groups, C / groups)
        step("ReduceMean", at("x", "axes"), "mean"),
        step("Sub", at("x", "mean"), "centred"),
        step("Mul", at("centred", "centred"), "squared"),
        step("ReduceMean", at("squared", "axes"), "variance"),
        step("Add", at("variance", "epsilon"), "more"),
        step("Sqrt", at("more"), "deviation"),
        step("Div", at("centred", "deviation"), "normal"),
        step("Reshape", at("normal", "whole"), "pixels_last"),  # (batch, h, w, C)
        step("Mul", [*at("pixels_last"), gamma], "scaled"),
        step("Add", [*at("scaled"), beta], "shifted"),
    ]
    if attribute(norm, "activation"):
        nodes += [
            step("Sigmoid", at("shifted"), "gate"),
            step("Mul", at("shifted", "gate"), "silu"),
        ]
    nodes[-1].output[0] = result
    return nodes


def _node(
    operator: str, inputs: list[str], output: str, owner: str, **attributes: object
) -> onnx.NodeProto:
    """A node named after the one it belongs to, so that `module_of` finds its module."""
    return helper.make_node(operator, inputs, [output], name=f"{owner}_{output}", **attributes)
