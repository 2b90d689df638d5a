"""Look things up in a traced graph: who computes a value, who reads it, its shape, a constant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper


class GraphIndex:
    """An index of a graph's nodes and values, valid until the graph is changed.

    Args:
        graph: traced graph, with the type and shape of its computed values.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.made_by = {value: node for node in graph.node for value in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for value in dict.fromkeys(node.input):
                self._readers[value].append(node)
        self._outputs = {value.name for value in graph.output}
        self._types = {
            value.name: value.type.tensor_type
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self._constants = {tensor.name: tensor for tensor in graph.initializer}

    def source(self, value: str, operator: str) -> onnx.NodeProto | None:
        """The node that computes a value, if it is of the given kind."""
        node = self.made_by.get(value)
        return node if node is not None and node.op_type == operator else None

    def reader(self, value: str, operator: str) -> onnx.NodeProto | None:
        """The only node that reads a value, if it is of the given kind."""
        readers = self._readers[value]
        if len(readers) != 1 or value in self._outputs or readers[0].op_type != operator:
            return None
        return readers[0]

    def readers(self, value: str) -> list[onnx.NodeProto]:
        """All nodes that read a value."""
        return self._readers[value]

    def shape(self, value: str) -> tuple[int | str, ...]:
        """Sizes of a value; names are dynamic dimensions, 0 an unknown one."""
        if value not in self._types:
            return ()
        return tuple(dim.dim_param or dim.dim_value for dim in self._types[value].shape.dim)

    def kind(self, value: str) -> int:
        """Element type of a computed value, of `TensorProto`; 0 if unknown."""
        return self._types[value].elem_type if value in self._types else 0

    def stored(self, value: str) -> TensorProto | None:
        """The constant behind a value, which a Cast may have widened; None if it is computed."""
        cast = self.source(value, "Cast")
        return self._constants.get(value if cast is None else cast.input[0])

    def constant(self, value: str) -> NDArray[Any] | None:
        """A constant that is stored in the graph's own file; None for all others."""
        tensor = self._constants.get(value)
        if tensor is None or tensor.external_data:
            return None
        return np.asarray(numpy_helper.to_array(tensor))


class Match(Protocol):
    """Nodes that one operator may stand for."""

    @property
    def result(self) -> str:
        """Name of the value that they compute."""
        ...


M = TypeVar("M", bound=Match)


def fuse(
    graph: onnx.GraphProto,
    operator: str,
    match: Callable[[GraphIndex, onnx.NodeProto], M | None],
    fused: Callable[[GraphIndex, M], list[onnx.NodeProto]],
) -> int:
    """Put other nodes in the places of those that compute a match's result.

    Nodes that nothing reads any more stay.

    Args:
        graph: traced graph; changed in place.
        operator: kind of the nodes that a match is looked for around.
        match: finds a match around a node of that kind; None leaves it alone.
        fused: makes the nodes that compute the result of a match.

    Returns:
        Number of matches.
    """
    index = GraphIndex(graph)
    found = {
        it.result: it
        for node in graph.node
        if node.op_type == operator and (it := match(index, node)) is not None
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        it = next((found[name] for name in node.output if name in found), None)
        nodes += [node] if it is None else fused(index, it)
    del graph.node[:]
    graph.node.extend(nodes)
    return len(found)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute; integers as a list if there are several."""
    for found in node.attribute:
        if found.name == name:
            value = onnx.helper.get_attribute_value(found)
            return list(value) if found.type == onnx.AttributeProto.INTS else value
    return default
