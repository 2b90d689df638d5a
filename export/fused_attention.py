"""Self-attention of image tokens as one operator of ONNX Runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import onnx
from onnx import TensorProto, helper

from dsd_trt.export.graph_index import GraphIndex, attribute, fuse
from dsd_trt.export.trace import module_of

DOMAIN = "com.microsoft"
_SPLIT_OR_JOIN = [0, 2, 1, 3]  # (batch, tokens, heads, d) <-> (batch, heads, tokens, d)
_FP16_ROUNDING = 2e-3  # relative, of d ** -0.25 squared


@dataclass(frozen=True)
class _Heads:
    """A value that is split into heads: (batch, tokens, heads * d) -> (batch, heads, tokens, d).

    Attributes:
        value: name of the value before it is split.
        heads: number of attention heads.
        width: d, the width of a head.
        wide: whether the heads are widened to FP32 after the split.
    """

    value: str
    heads: int
    width: int
    wide: bool


@dataclass(frozen=True)
class _SelfAttention:
    """One self-attention, from what is split into heads to the joined heads."""

    query: _Heads
    key: _Heads
    value: _Heads
    result: str


def fuse_self_attentions(model: onnx.ModelProto) -> int:
    """Replace self-attentions by nodes of `com.microsoft.MultiHeadAttention`, in place.

    Such a node takes queries, keys and values before they are split into heads, and scales the
    logits by d ** -0.5. ONNX Runtime has kernels for it on CUDA that never store the attention map.
    Precision stays: what was computed in FP32 between two Casts still is.

    Attention whose map has another reader is left alone, as scored cross-attention is. So is
    attention with a mask, of the text encoder, and cross-attention in general, whose logits are
    FP32 in every precision.

    Args:
        model: graph as `trace` returns it.

    Returns:
        Number of the nodes that were added.
    """
    return fuse(model.graph, "Softmax", _match, partial(_fused, model.graph))


def _match(index: GraphIndex, softmax: onnx.NodeProto) -> _SelfAttention | None:
    """The self-attention around a softmax; None if it is anything else."""
    product = index.source(softmax.input[0], "MatMul")
    mixing = index.reader(softmax.output[0], "MatMul")
    if product is None or mixing is None or mixing.input[0] != softmax.output[0]:
        return None
    query, first = _unscaled(index, product.input[0])
    transposed, second = _unscaled(index, product.input[1])
    key = _untransposed(index, transposed)
    split = [_unsplit(index, it) for it in (query, key, mixing.input[1])]
    result = _joined(index, mixing.output[0])
    if any(it is None for it in split) or result is None:
        return None
    q, k, v = (it for it in split if it is not None)
    alike = len({(it.heads, it.width, it.wide, index.shape(it.value)) for it in (q, k, v)}) == 1
    usual = math.isclose(first * second, q.width**-0.5, rel_tol=_FP16_ROUNDING)
    if not alike or not usual or attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    return _SelfAttention(q, k, v, result)


def _unscaled(index: GraphIndex, value: str) -> tuple[str, float]:
    """A value before it is multiplied by a constant number, and that number."""
    node = index.source(value, "Mul")
    factor = None if node is None else index.constant(node.input[1])
    if node is None or factor is None or factor.size != 1:
        return value, 1.0
    return node.input[0], float(factor.item())


def _untransposed(index: GraphIndex, value: str) -> str:
    """Keys before PyTorch's exporter transposes them, as (batch * heads, tokens, d)."""
    restored = index.source(value, "Reshape")
    turned = None if restored is None else index.source(restored.input[0], "Transpose")
    if turned is None or attribute(turned, "perm") != [0, 2, 1]:
        return ""
    flat = index.source(turned.input[0], "Reshape")
    return "" if flat is None else flat.input[0]


def _unsplit(index: GraphIndex, value: str) -> _Heads | None:
    """A value before it is split into heads; None if it is not."""
    widened = index.source(value, "Cast")
    if widened is not None:
        if attribute(widened, "to") != TensorProto.FLOAT:
            return None
        value = widened.input[0]
    turned = index.source(value, "Transpose")
    if turned is None or attribute(turned, "perm") != _SPLIT_OR_JOIN:
        return None
    reshape = index.source(turned.input[0], "Reshape")
    if reshape is None:
        return None
    whole, apart = index.shape(reshape.input[0]), index.shape(reshape.output[0])
    if len(whole) != 3 or len(apart) != 4 or whole[:2] != apart[:2]:
        return None
    heads, width = apart[2:]
    if not (isinstance(heads, int) and isinstance(width, int) and heads * width == whole[2]):
        return None
    return _Heads(reshape.input[0], heads, width, widened is not None)


def _joined(index: GraphIndex, value: str) -> str | None:
    """The joined heads of attention's output, (batch, tokens, heads * d), after a Cast if any."""
    narrowed = index.reader(value, "Cast")
    turned = index.reader(narrowed.output[0] if narrowed else value, "Transpose")
    if turned is None or attribute(turned, "perm") != _SPLIT_OR_JOIN:
        return None
    reshape = index.reader(turned.output[0], "Reshape")
    if reshape is None or len(index.shape(reshape.output[0])) != 3:
        return None
    return reshape.output[0]


def _fused(
    graph: onnx.GraphProto, index: GraphIndex, attention: _SelfAttention
) -> list[onnx.NodeProto]:
    """The fused node; Casts around it if the traced graph had them around attention."""
    module = module_of(index.made_by[attention.query.value]).rpartition(".")[0]
    name = f"{module}/MultiHeadAttention".lstrip("/")
    heads, result = (attention.query, attention.key, attention.value), attention.result
    names = [it.value for it in heads]
    before, after, output = list[onnx.NodeProto](), list[onnx.NodeProto](), result
    if attention.query.wide:
        before = [_cast(it, f"{result}.{i}", name, TensorProto.FLOAT) for i, it in enumerate(names)]
        names, output = [node.output[0] for node in before], f"{result}.wide"
        after = [_cast(output, result, name, TensorProto.FLOAT16)]
        narrow = next(it for it in graph.value_info if it.name == result)
        for value in (*names, output):
            wide = graph.value_info.add()
            wide.CopyFrom(narrow)  # all are (batch, tokens, heads * d)
            wide.name, wide.type.tensor_type.elem_type = value, TensorProto.FLOAT
    fused = helper.make_node(
        "MultiHeadAttention",
        names,
        [output],
        name=name,
        domain=DOMAIN,
        num_heads=attention.query.heads,
        scale=attention.query.width**-0.5,
    )
    return [*before, fused, *after]


def _cast(source: str, target: str, owner: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{owner}_{target}", to=to)
