"""Cutting a matrix scorer's ONNX file between images and texts, without `onnx`.

A part of a graph has some of its nodes, unchanged, and the weights that these read. It is written
as bytes: the weights stay in the bundle's files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dsd_trt.bundle.contract import LARGEST_LAMBDA
from dsd_trt.engine.pooled_attention import MOMENTS
from dsd_trt.files import protobuf

# Fields of ONNX's messages, from onnx.proto.
_GRAPH = 7  # of a model
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13  # of a graph
_READS, _GIVES, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5  # of a node
_ATTRIBUTE_NAME, _INTEGER, _SUBGRAPH, _SUBGRAPHS = 1, 3, 6, 11  # of an attribute
_NAME, _TYPE = 1, 2  # of a described value
_TENSOR_TYPE, _ELEMENT_TYPE = 1, 1  # of a type, and of a tensor's
_NUMBERS = (1, 10, 11, 16)  # element types: float, float16, double, bfloat16
_DIMENSIONS, _DATA_TYPE, _TENSOR_NAME, _RAW = 1, 2, 8, 9  # of a tensor
_FLOAT = 1  # element type
_ELEMENTS = {  # ONNX Runtime's names of types, and ONNX's numbers
    "tensor(float)": 1,
    "tensor(uint8)": 2,
    "tensor(int32)": 6,
    "tensor(int64)": 7,
    "tensor(bool)": 9,
    "tensor(float16)": 10,
    "tensor(double)": 11,
}
# What `pool_attention` computes, from the keys' and queries' product on.
_CHAIN = ("ReduceMean", "Exp", "Mul", "Reshape", "Slice", "Softmax", "Reshape", "MatMul")


@dataclass(frozen=True)
class Attention:
    """Names of the values of one layer's pooled attention; see `PooledAttention`.

    Attributes:
        keys: keys, (heads, texts * text_tokens, depth).
        queries: queries, (heads, depth, images * image_tokens).
        sizes: int64 (5,): heads, texts, counted, images, image_tokens.
        pooled: the result, (heads, texts, counted, images).
        lam: sharpness lambda of Eq. 3.
        basis: basis of the maps' moments, (image_tokens, 3); None if the graph reads none.
        moments: the moments, (heads, texts, counted, images, 3); None likewise.
    """

    keys: str
    queries: str
    sizes: str
    pooled: str
    lam: float
    basis: str | None = None
    moments: str | None = None


@dataclass
class _Node:
    content: bytes
    operator: str = ""
    reads: list[str] = field(default_factory=list)  # subgraphs included
    gives: list[str] = field(default_factory=list)
    integers: dict[str, int] = field(default_factory=dict)  # attributes


class CutGraph:
    """A graph, and where values that depend on rows alone meet those that depend on texts.

    Args:
        model: content of the ONNX file.
        of_texts: names of the inputs that belong to texts.

    Raises:
        ValueError: the content is not an ONNX graph.

    Attributes:
        crossing: names of the values at the cut.
        attention: layers whose attention `pool_attention` can compute.
    """

    def __init__(self, model: bytes, of_texts: Sequence[str]) -> None:
        self._around: list[bytes] = []  # fields of the model besides the graph
        self._rest: list[bytes] = []  # fields of the graph that every part has
        self._nodes: list[_Node] = []
        self._weights: dict[str, bytes] = {}
        self._described: dict[str, bytes] = {}  # inputs and outputs
        self._noted: dict[str, bytes] = {}  # values between them, as the exporter described them
        self._inputs: list[str] = []
        for number, start, value, end in protobuf.fields(model, 0, len(model)):
            if number == _GRAPH:
                self._read(model, value, end)
            else:
                self._around.append(model[start:end])
        self._makers = {name: node for node in self._nodes for name in node.gives}
        texts = self._downstream(of_texts)
        self._rows = [it for it in self._inputs if it not in texts]
        rows = self._downstream(self._rows) - texts
        met = (it for node in self._nodes if texts & set(node.gives) for it in node.reads)
        self.crossing: list[str] = [
            it for it in dict.fromkeys(met) if it in rows and it in self._makers
        ]
        self.attention: list[Attention] = [
            layer
            for node in self._nodes
            if texts & set(node.gives) and (layer := self._attention(node)) is not None
            if layer.keys in texts and layer.queries in rows
        ]

    def part(self, inputs: Mapping[str, str | None], outputs: Sequence[str]) -> bytes:
        """The part of the graph between some values, as an ONNX file.

        Args:
            inputs: names of the part's inputs, with ONNX Runtime's name of the type; None for an
                input of the whole graph.
            outputs: names of the part's outputs.
        """
        nodes, needed = self._needed(inputs, outputs)
        parts = [(_NODE, node.content) for node in nodes]
        parts += [(_INITIALIZER, it) for name, it in self._weights.items() if name in needed]
        for name, kind in inputs.items():
            described = self._described[name] if kind is None else _described(name, kind)
            parts.append((_INPUT, described))
        for name in outputs:
            described = self._described.get(name) or protobuf.field(_NAME, name.encode())
            parts.append((_OUTPUT, described))
        content = b"".join([*self._rest, *(protobuf.field(*it) for it in parts)])
        return b"".join([*self._around, protobuf.field(_GRAPH, content)])

    def read_by(self, inputs: Iterable[str], outputs: Sequence[str]) -> set[str]:
        """Names of those inputs of a part that its outputs depend on; arguments as of `part`."""
        given = dict.fromkeys(inputs)
        return self._needed(given, outputs)[1] & given.keys()

    def halves(self, outputs: Sequence[str]) -> tuple[bytes, bytes]:
        """The walk and the match as ONNX files whose inputs and outputs have types and ranks.

        Of the values at the cut, numbers alone cross it. Sizes are computed in both parts, from
        inputs that belong to rows, because an engine on a GPU would wait for them.

        Args:
            outputs: names of the outputs of the whole graph.

        Raises:
            ValueError: the graph does not describe a value at the cut.
        """
        if lacking := [it for it in self.crossing if it not in self._noted]:
            raise ValueError(f"it has no type and shape of the value {lacking[0]!r}")
        described = {it: self._noted[it] for it in self.crossing}
        crossing = [it for it, content in described.items() if _element(content) in _NUMBERS]
        self._described |= described
        walk = self.part(dict.fromkeys(self._rows), crossing)
        given = [*self._inputs, *crossing]
        needed = self.read_by(given, outputs)
        return walk, self.part({it: None for it in given if it in needed}, outputs)

    def _needed(
        self, inputs: Mapping[str, object], outputs: Sequence[str]
    ) -> tuple[list[_Node], set[str]]:
        """Nodes of the part between some values, in order, and the names of all that it needs."""
        needed, nodes = set(outputs), list[_Node]()
        for node in reversed(self._nodes):
            if not needed.isdisjoint(node.gives) and inputs.keys().isdisjoint(node.gives):
                nodes.append(node)
                needed.update(node.reads)
        return nodes[::-1], needed

    def _read(self, model: bytes, at: int, end: int) -> None:
        for number, start, value, stop in protobuf.fields(model, at, end):
            content = model[value:stop]
            if number == _NODE:
                self._nodes.append(_node(content))
            elif number == _INITIALIZER:
                self._weights[_text(content, _TENSOR_NAME)] = content
            elif number in (_INPUT, _OUTPUT):
                self._described[name := _text(content, _NAME)] = content
                if number == _INPUT:
                    self._inputs.append(name)
            elif number == _VALUE_INFO:
                self._noted[_text(content, _NAME)] = content
            else:
                self._rest.append(model[start:stop])

    def _downstream(self, inputs: Iterable[str]) -> set[str]:
        """Names of some inputs and of everything that depends on them."""
        found = set(inputs)
        for node in self._nodes:
            if not found.isdisjoint(node.reads):
                found.update(node.gives)
        return found

    def _attention(self, node: _Node) -> Attention | None:
        """The layer whose pooled attention a node gives, if `pool_attention` can compute it."""
        chain = [node]
        for operator in _CHAIN:
            if chain[-1].operator != operator or not chain[-1].reads:
                return None
            if (before := self._makers.get(chain[-1].reads[0])) is not None:
                chain.append(before)
        mean, _, times, apart, counted, softmax, _, product = chain[: len(_CHAIN)]
        lam = self._constant(times.reads[-1], "<f")
        places = (*counted.reads[1:2], *counted.reads[3:5])
        starts, axes, steps = (self._constant(it, "<q") for it in places)
        if (
            (starts, axes, steps) != (0, 2, 1)
            or self._constant(mean.reads[-1], "<q") != 4
            or mean.integers.get("keepdims", 1)
            or softmax.integers.get("axis", -1) != 2
            or lam is None
            or not 0 < lam <= LARGEST_LAMBDA
        ):
            return None
        keys, queries = product.reads
        basis, moments = self._moments(chain[1].gives[0])
        return Attention(keys, queries, apart.reads[1], node.gives[0], lam, basis, moments)

    def _moments(self, sharp: str) -> tuple[str | None, str | None]:
        """Names of the basis and of the moments of maps' exponentials, if the graph has them."""
        for less in self._readers(sharp, "Sub"):
            if less.reads[0] == sharp and self._constant(less.reads[1], "<f") == 1:
                for product in self._readers(less.gives[0], "MatMul"):
                    if product.reads[0] == less.gives[0] and self._is_basis(product.reads[1]):
                        return product.reads[1], product.gives[0]
        return None, None

    def _readers(self, name: str, operator: str) -> list[_Node]:
        return [it for it in self._nodes if it.operator == operator and name in it.reads]

    def _is_basis(self, name: str) -> bool:
        """Whether a value is a constant that `Moments` takes; rows are checked when it is used."""
        tensor = self._weights.get(name, b"")
        kind, sizes = 0, list[int]()
        for number, _, value, end in protobuf.fields(tensor, 0, len(tensor)):
            if number == _DATA_TYPE:
                kind = protobuf.read_varint(tensor, value, end)[0]
            elif number == _DIMENSIONS:  # one each, or several packed
                while value < end:
                    size, value = protobuf.read_varint(tensor, value, end)
                    sizes.append(size)
        return kind == _FLOAT and len(sizes) == 2 and sizes[1] == MOMENTS

    def _constant(self, name: str, kind: str) -> float | None:
        """The only number of a constant, if it is one and stored as it is; `kind` as in struct."""
        raw = _bytes(self._weights.get(name, b""), _RAW)
        return struct.unpack(kind, raw)[0] if len(raw) == struct.calcsize(kind) else None


def _node(content: bytes) -> _Node:
    node = _Node(content)
    for number, _, value, end in protobuf.fields(content, 0, len(content)):
        if number == _READS and end > value:  # an empty name is an input left out
            node.reads.append(content[value:end].decode())
        elif number == _GIVES:
            node.gives.append(content[value:end].decode())
        elif number == _OPERATOR:
            node.operator = content[value:end].decode()
        elif number == _ATTRIBUTE:
            attribute = content[value:end]
            node.reads += _captured(attribute)
            for inner, _, at, stop in protobuf.fields(attribute, 0, len(attribute)):
                if inner == _INTEGER:
                    name = _text(attribute, _ATTRIBUTE_NAME)
                    node.integers[name] = protobuf.read_varint(attribute, at, stop)[0]
    return node


def _captured(attribute: bytes) -> Iterator[str]:
    """Names that subgraphs of an attribute read; in ONNX none is that of another value outside."""
    for number, _, value, end in protobuf.fields(attribute, 0, len(attribute)):
        if number in (_SUBGRAPH, _SUBGRAPHS):
            for inner, _, at, stop in protobuf.fields(attribute, value, end):
                if inner == _NODE:
                    yield from _node(attribute[at:stop]).reads
                elif inner == _OUTPUT:
                    yield _text(attribute[at:stop], _NAME)


def _bytes(message: bytes, wanted: int) -> bytes:
    """A field of a message, the last one if there are several; empty if there is none."""
    found = b""
    for number, _, value, end in protobuf.fields(message, 0, len(message)):
        if number == wanted:
            found = message[value:end]
    return found


def _text(message: bytes, wanted: int) -> str:
    return _bytes(message, wanted).decode()


def _element(described: bytes) -> int:
    """ONNX's number of the element type of a described value; 0 if it is no tensor."""
    tensor = _bytes(_bytes(described, _TYPE), _TENSOR_TYPE)
    for number, _, value, end in protobuf.fields(tensor, 0, len(tensor)):
        if number == _ELEMENT_TYPE:
            return protobuf.read_varint(tensor, value, end)[0]
    return 0


def _described(name: str, kind: str) -> bytes:
    """A value of any shape, as a graph describes its inputs."""
    element = protobuf.varint(_ELEMENT_TYPE << 3) + protobuf.varint(_ELEMENTS[kind])
    tensor = protobuf.field(_TENSOR_TYPE, element)
    return protobuf.field(_NAME, name.encode()) + protobuf.field(_TYPE, tensor)
