"""The matrix scorer on OpenVINO: one walk per row, matched with a few texts at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from dsd_trt.batching import MASK_STEP, walks_at_once
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.engine import EngineDescription, pooled_attention
from dsd_trt.engine.matrix import NUMBERS, TEXTS, Array, MatrixEngine
from dsd_trt.engine.openvino.cut import Lifted, largest, lift_attention, split
from dsd_trt.engine.openvino.graph import OpenVinoGraph
from dsd_trt.engine.pooled_attention import (
    Moments,
    PooledAttention,
    pool_attention,
    tile_width,
)
from dsd_trt.errors import EngineError, one_line


class OpenVinoMatrixEngine(MatrixEngine):
    """The matrix scorer compiled by OpenVINO; see `MatrixEngine`.

    The second part has little arithmetic per text but large attention maps. They are left to
    `pool_attention` if it is available, which never stores them. All parts are compiled for fixed
    sizes. The walk of a large model holds nearly all of its weights. It is compiled for one row
    alone, and runs once for each; the second part then takes all rows together.

    Args:
        path: path of the ONNX file.
        graph: declared inputs and outputs, see `MatrixEngine`.
        bf16: whether to compute in BF16, see `OpenVinoGraph`.
        large: whether the bundle's weights are large, see `OpenVinoGraph`.
        threads: number of threads to compute with, see `OpenVinoGraph`.
        cache_compiled: whether large compiled models are kept, see `OpenVinoGraph`.

    Raises:
        EngineError: OpenVINO refuses the graph, or the processor does not support BF16.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        *,
        bf16: bool = False,
        large: bool = False,
        threads: int | None = None,
        cache_compiled: bool = False,
    ) -> None:
        super().__init__(graph, walks_at_once(large))
        self._source = OpenVinoGraph(
            path,
            graph,
            bf16=bf16,
            large=large,
            threads=threads,
            cache_compiled=cache_compiled,
        )
        row, (text, token) = graph.inputs[0].shape[0], graph.inputs[-1].shape
        self._names = (row, text, token)
        self._row_specs = [spec for spec in self._source.inputs if spec.name in self._of_rows]
        self._text_specs = [spec for spec in self._source.inputs if spec.name in self._of_texts]
        self._requests: dict[int, ov.InferRequest] = {}  # by number of rows that they walk at once
        self._walks: dict[int, _Walk] = {}  # by number of rows
        self._matches: dict[tuple[int, int], _Match] = {}  # by number of rows and tokens
        self._rows = self._sizes[-2]  # of the last walk; here of one image, one per level
        self._prepare(self._rows, MASK_STEP)
        self.description: EngineDescription = self._source.describe(
            self._walks[self._rows].compiled
        )

    def _walk(self, feeds: Mapping[str, Array], width: int) -> None:
        self._rows = len(feeds[self._of_rows[0]])
        self._prepare(self._rows, width)
        try:
            self._walks[self._rows].run([feeds[spec.name] for spec in self._row_specs])
        except EngineError:
            raise
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f"openvino failed: {one_line(error, 800)}") from error

    def _match(self, feeds: Mapping[str, Array]) -> Array:
        match = self._prepare(self._rows, feeds[self._of_texts[-1]].shape[1])
        try:
            return match.run(feeds)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"openvino failed: {one_line(error, 800)}") from error

    def _release(self) -> None:
        self._matches.clear()
        self._walks.clear()
        self._requests.clear()
        del self._source

    def _prepare(self, rows: int, width: int) -> _Match:
        """Compile what is missing for a number of rows to walk and tokens to match."""
        if (known := self._matches.get((rows, width))) is not None:
            return known
        walk, match = self._split(rows, TEXTS, width)
        if (fit := NUMBERS * TEXTS // max(map(largest, match.parts))) < TEXTS:
            walk, match = self._split(rows, max(fit, 1), width)
        if rows not in self._walks:
            self._walks[rows] = self._compiled_walk(walk, rows)
        walked, name = self._walks[rows].outputs, f"match {rows} {width}"
        made = _Match(self._source, match, walked, self._text_specs, name)
        self._matches[rows, width] = made
        return made

    def _compiled_walk(self, walk: ov.Model, rows: int) -> _Walk:
        """Compile the walk of some rows; of a large model, for one row, which is compiled once."""
        outputs = [(it.get_element_type(), list(it.get_shape())) for it in walk.outputs]
        each = 1 if self._source.large else rows
        if each not in self._requests:
            if each != rows:
                walk = self._split(each, 1, MASK_STEP)[0]
            compiled = self._source.compile(walk, f"walk {each}", NUM_STREAMS=1)
            self._requests[each] = compiled.create_infer_request()
        return _Walk(self._requests[each], outputs, rows)

    def _split(self, rows: int, texts: int, width: int) -> tuple[ov.Model, Lifted]:
        model = self._source.model.clone()
        sizes = dict(zip(self._names, (rows, texts, width), strict=True))
        model.reshape(
            {
                place: [sizes.get(str(size), size) for size in spec.shape]
                for place, spec in enumerate(self._source.inputs)
            }
        )
        walk, match = split(model, len(self._row_specs))
        return walk, lift_attention(match, lift=pooled_attention.available())


class _Walk:
    """The walk of some rows, by a request for all of them or for one.

    Args:
        request: request of the compiled walk; the one for one row is shared by all walks.
        outputs: types and shapes of the outputs for all rows.
        rows: number of images at one noise level that are walked together.

    Attributes:
        request: request of the compiled walk.
        outputs: outputs of the latest walk, always the same tensors.
    """

    def __init__(
        self, request: ov.InferRequest, outputs: Sequence[tuple[ov.Type, list[int]]], rows: int
    ) -> None:
        self.request = request
        self.outputs: list[ov.Tensor] = list(request.output_tensors)
        self._rows: list[list[tuple[Array, Array]]] = []  # each row's place, and a walk's output
        if [list(it.shape) for it in self.outputs] == [shape for _, shape in outputs]:
            return
        walked = [it.data for it in self.outputs]
        self.outputs = [ov.Tensor(kind, ov.Shape(shape)) for kind, shape in outputs]
        whole = [it.data for it in self.outputs]
        places = [_by_row(it, one.shape, rows) for it, one in zip(whole, walked, strict=True)]
        for of_row in zip(*places, strict=True):
            self._rows.append(list(zip(of_row, walked, strict=True)))

    @property
    def compiled(self) -> Any:
        """The compiled model."""
        return self.request.get_compiled_model()

    def run(self, feeds: Sequence[Array]) -> None:
        """Walk all rows."""
        if not self._rows:
            self.request.infer(list(feeds))
            return
        for row, outputs in enumerate(self._rows):
            self.request.infer([it[row : row + 1] for it in feeds])
            for place, walked in outputs:
                place[...] = walked


def _by_row(whole: Array, one: Sequence[int], rows: int) -> list[Array]:
    """Views of each row's part of a tensor, whose shape for one row is known."""
    for axis, (size, of_one) in enumerate(zip(whole.shape, one, strict=True)):
        if size != of_one:
            return np.split(whole, rows, axis)
    return [whole] * rows  # the same for every row


class _Match:
    """Matching the rows of a walk with a few texts.

    Args:
        source: graph that compiles models.
        match: model from the walk's outputs and text inputs to scores.
        walked: outputs of the walk, the first inputs of `match`.
        of_texts: inputs of `match` that belong to texts.
        name: name of the match, for the cache.

    Attributes:
        texts: largest number of texts per run.
    """

    def __init__(
        self,
        source: OpenVinoGraph,
        match: Lifted,
        walked: Sequence[ov.Tensor],
        of_texts: Sequence[TensorSpec],
        name: str,
    ) -> None:
        given = dict(zip(match.inputs, walked, strict=False))
        asked = dict(zip(match.inputs[len(walked) :], of_texts, strict=True))
        self._inputs: list[tuple[str, ov.Tensor]] = []
        requests = []
        for part, model in enumerate(match.parts):
            # Has little arithmetic; attention maps are FP32 in either precision.
            exact: dict[str, Any] = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
            compiled = source.compile(model, f"{name} {part}", **exact)
            requests.append(request := compiled.create_infer_request())
            for place, parameter in enumerate(model.get_parameters()):
                if (value := parameter.get_friendly_name()) in given:
                    request.set_input_tensor(place, given[value])  # the walk's output, not a copy
                elif value in asked:
                    self._inputs.append((asked[value].name, request.input_tensors[place]))
        self._steps: list[Callable[[], object]] = [request.infer for request in requests]
        if match.layers:
            before, after = requests
            keys = [tensor.data for tensor in before.output_tensors]
            read = iter(after.input_tensors)  # every layer's pooled attention, then all moments
            pooled = [next(read).data for _ in match.layers]
            moments = [
                None if (lifted := it.moments) is None else Moments(lifted.basis, next(read).data)
                for it in match.layers
            ]
            layers = [
                PooledAttention(of_texts, given[it.queries].data, to, it.lam, sums)
                for it, of_texts, to, sums in zip(match.layers, keys, pooled, moments, strict=True)
            ]
            width = tile_width() if source.bf16 else None
            self._steps.insert(1, partial(pool_attention, layers, source.threads, width))
        self._scores = requests[-1].output_tensors[0]
        # OpenVINO 2026.4.1 compiles some outputs of shape (1, texts) to (texts, 1).
        self._shape = list(match.parts[-1].outputs[0].get_shape())
        self.texts: int = self._shape[1]

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """Scores of the latest walk's rows with at most `texts` of some texts: (rows, texts)."""
        count = self.texts
        for name, tensor in self._inputs:
            given = feeds[name][: self.texts]
            count = len(given)
            tensor.data[:count] = given
            tensor.data[count:] = 0
        for step in self._steps:
            step()
        scores: Array = self._scores.data.reshape(self._shape)[:, :count]
        return scores
