"""The matrix scorer on OpenVINO: walked once a row, matched with a few texts at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as operations

from dsd_trt.batching import MASK_STEP, walks_at_once
from dsd_trt.contract import Graph
from dsd_trt.engine.openvino import OpenVinoGraph
from dsd_trt.errors import EngineError

_TEXTS = 16  # matched at once, fewer where maps are larger than this many numbers:
_NUMBERS = 2**25

Array = NDArray[Any]


class OpenVinoMatrixEngine:
    """A graph of two batches, rows and texts; see `Engine`.

    The graph is cut in two where what comes of rows alone meets the texts. The first part, the walk
    through the U-Net, runs once for a row; the second, which does little for a text but makes large
    maps, for a few texts at a time, so that memory does not grow with their number and maps stay
    near the processor. Both are compiled for fixed sizes.

    Args:
        path: the ONNX file.
        graph: its signature: rows are what its first input has, texts what its last one has.
        bf16: compute in BF16, see `OpenVinoGraph`.

    Raises:
        EngineError: openvino refuses the graph, or the processor has no BF16.
    """

    def __init__(self, path: Path, graph: Graph, *, bf16: bool = False) -> None:
        self._source, self._graph = OpenVinoGraph(path, graph, bf16=bf16), graph
        row, (text, token) = graph.inputs[0].shape[0], graph.inputs[-1].shape
        self._names = (row, text, token)
        self._of_rows = [spec for spec in self._source.inputs if spec.shape[0] == row]
        self._of_texts = [spec for spec in self._source.inputs if spec.shape[0] != row]
        self._sizes = walks_at_once(self._source.large)
        self._walks: dict[int, ov.InferRequest] = {}  # by rows
        self._matches: dict[tuple[int, int], ov.InferRequest] = {}  # by rows and tokens
        rows = self._sizes[-2]  # of one image, where it is scored at as many levels
        self._prepare(rows, MASK_STEP)
        self.description = self._source.describe(self._walks[rows].get_compiled_model())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once; see `Engine.run`."""
        (output,), mask = self._graph.outputs, feeds[self._graph.inputs[-1].name]
        scores = np.empty((len(feeds[self._graph.inputs[0].name]), len(mask)), output.dtype)
        # Short texts first: the tokens that are pooled are those of the longest one at hand.
        tokens = [int(np.flatnonzero(row).max(initial=0)) + 1 for row in mask]
        order = np.argsort(tokens, kind="stable")
        for part in self._cut(len(scores)):
            rows, walked, start = part.stop - part.start, False, 0
            while start < len(order):
                texts = order[start : start + _TEXTS]
                width = min(-(-tokens[texts[-1]] // MASK_STEP) * MASK_STEP, mask.shape[1])
                self._prepare(rows, width)
                try:
                    if not walked:
                        self._walks[rows].infer([feeds[it.name][part] for it in self._of_rows])
                        walked = True
                    match = self._matches[rows, width]
                    texts = texts[: match.input_tensors[-1].shape[0]]
                    scores[part, texts] = self._match(match, feeds, texts)
                except Exception as error:  # its exceptions have no base of their own
                    raise EngineError(f"openvino failed: {error}") from error
                start += len(texts)
        return {output.name: scores}

    def _match(self, match: ov.InferRequest, feeds: Mapping[str, Array], texts: Array) -> Array:
        """The rows of the latest walk with some texts, at most as many as are compiled for."""
        for tensor, spec in zip(
            match.input_tensors[-len(self._of_texts) :], self._of_texts, strict=True
        ):
            tensor.data[: len(texts)] = feeds[spec.name][texts, : tensor.shape[1]]
            tensor.data[len(texts) :] = 0
        match.infer()
        scores: Array = match.output_tensors[0].data[:, : len(texts)]
        return scores

    def _cut(self, count: int) -> Iterator[slice]:
        """The largest parts first."""
        start = 0
        for size in self._sizes:
            while count - start >= size:
                yield slice(start, start + size)
                start += size

    def _prepare(self, rows: int, width: int) -> None:
        """Compile what is not yet: the walk of so many rows, and matching so many tokens."""
        if (rows, width) in self._matches:
            return
        walk, match = self._split(rows, _TEXTS, width)
        if (fit := _NUMBERS * _TEXTS // _largest(match)) < _TEXTS:
            walk, match = self._split(rows, max(fit, 1), width)
        if rows not in self._walks:
            self._walks[rows] = self._source.compile(walk, {}, NUM_STREAMS=1).create_infer_request()
        # Nearly all of it is reading and writing maps, which are FP32 in either case.
        exact = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        request = self._source.compile(match, {}, **exact).create_infer_request()
        for place, tensor in enumerate(self._walks[rows].output_tensors):
            request.set_input_tensor(place, tensor)  # the same memory
        self._matches[rows, width] = request

    def _split(self, rows: int, texts: int, width: int) -> tuple[ov.Model, ov.Model]:
        model = self._source.model.clone()
        sizes = dict(zip(self._names, (rows, texts, width), strict=True))
        model.reshape(
            {
                place: [sizes.get(str(size), size) for size in spec.shape]
                for place, spec in enumerate(self._source.inputs)
            }
        )
        return split(model, len(self._of_rows))


def split(model: ov.Model, rows: int) -> tuple[ov.Model, ov.Model]:
    """Cut a model where what depends on rows alone is used by what depends on texts.

    Args:
        model: of fixed sizes; not to be used afterwards.
        rows: how many of its inputs, the first, are rows'.

    Returns:
        From rows to what crosses the cut; and from that, followed by the other inputs, to the
        model's outputs.
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


def _fix_shapes(model: ov.Model) -> None:
    """Make constants of what is asked of shapes, or the cut would have those cross it as well."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ShapeOf":
            shape = np.array(node.input_value(0).get_shape(), node.get_element_type().to_dtype())
            for port in node.output(0).get_target_inputs():
                port.replace_source_output(operations.constant(shape).output(0))


def _downstream(model: ov.Model, parameters: Sequence[Any]) -> set[str]:
    """Names of the nodes that depend on some of the inputs."""
    found = {parameter.get_friendly_name() for parameter in parameters}
    for node in model.get_ordered_ops():
        if any(value.get_node().get_friendly_name() in found for value in node.input_values()):
            found.add(node.get_friendly_name())
    return found


def _largest(model: ov.Model) -> int:
    """Numbers of the largest tensor that is computed."""
    return max(
        math.prod(output.get_shape())
        for node in model.get_ordered_ops()
        if node.get_type_name() != "Constant"
        for output in node.outputs()
    )
