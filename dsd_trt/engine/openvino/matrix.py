"""The matrix scorer on OpenVINO: one walk per row, matched with a few texts at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from dsd_trt.batching import MASK_STEP
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.engine.openvino import pooled_attention
from dsd_trt.engine.openvino.backend import walks_at_once
from dsd_trt.engine.openvino.cut import Lifted, largest, lift_attention, split
from dsd_trt.engine.openvino.graph import OpenVinoGraph
from dsd_trt.engine.openvino.pooled_attention import PooledAttention, pool_attention, tile_width
from dsd_trt.engine.shared import SharedEngine
from dsd_trt.errors import EngineError, one_line
from dsd_trt.spans import span

_TEXTS = 16  # per run; fewer if the attention maps would have more numbers than this:
_NUMBERS = 2**25

Array = NDArray[Any]


class OpenVinoMatrixEngine(SharedEngine):
    """A graph with two batches, rows and texts; see `Engine`.

    The graph is cut in two where values that depend only on rows meet the texts. The first part,
    the walk through the U-Net, runs once per row. The second part runs for a few texts at a time,
    so that memory does not grow with their number.

    The second part has little arithmetic per text but large attention maps. They are left to
    `pool_attention` if it is available, which never stores them. All parts are compiled for fixed
    sizes.

    Args:
        path: path of the ONNX file.
        graph: declared inputs and outputs; the first input has a batch of rows, the last one of
            texts.
        bf16: whether to compute in BF16, see `OpenVinoGraph`.
        large: whether the bundle's weights are large, see `OpenVinoGraph`.
        threads: number of threads to compute with, see `OpenVinoGraph`.

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
    ) -> None:
        super().__init__(graph)
        self._source = OpenVinoGraph(path, graph, bf16=bf16, large=large, threads=threads)
        row, (text, token) = graph.inputs[0].shape[0], graph.inputs[-1].shape
        self._names = (row, text, token)
        self._of_rows = [spec for spec in self._source.inputs if spec.shape[0] == row]
        self._of_texts = [spec for spec in self._source.inputs if spec.shape[0] != row]
        self._sizes = walks_at_once(large)
        self._walks: dict[int, ov.InferRequest] = {}  # by number of rows
        self._matches: dict[tuple[int, int], _Match] = {}  # by number of rows and tokens
        rows = self._sizes[-2]  # rows of one image, one per level
        self._prepare(rows, MASK_STEP)
        self.description = self._source.describe(self._walks[rows].get_compiled_model())

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        (output,), mask = self._graph.outputs, feeds[self._graph.inputs[-1].name]
        scores = np.empty((len(feeds[self._graph.inputs[0].name]), len(mask)), output.dtype)
        # Short texts first: a batch pools as many tokens as its longest text has.
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
                        with span("U-Net pass", "walk", walks=rows):
                            self._walks[rows].infer([feeds[it.name][part] for it in self._of_rows])
                        walked = True
                    match = self._matches[rows, width]
                    texts = texts[: match.texts]
                    with span("U-Net pass", "match", walks=rows, texts=len(texts)):
                        scores[part, texts] = match.run(feeds, texts)
                except EngineError:
                    raise
                except Exception as error:  # its exceptions share no base class
                    raise EngineError(f"openvino failed: {one_line(error, 800)}") from error
                start += len(texts)
        return {output.name: scores}

    def _release(self) -> None:
        self._matches.clear()
        self._walks.clear()
        del self._source

    def _cut(self, count: int) -> Iterator[slice]:
        """Split a batch into parts, the largest first."""
        start = 0
        for size in self._sizes:
            while count - start >= size:
                yield slice(start, start + size)
                start += size

    def _prepare(self, rows: int, width: int) -> None:
        """Compile what is missing for a number of rows to walk and tokens to match."""
        if (rows, width) in self._matches:
            return
        walk, match = self._split(rows, _TEXTS, width)
        if (fit := _NUMBERS * _TEXTS // max(map(largest, match.parts))) < _TEXTS:
            walk, match = self._split(rows, max(fit, 1), width)
        if rows not in self._walks:
            self._walks[rows] = self._source.compile(walk, NUM_STREAMS=1).create_infer_request()
        walked = self._walks[rows].output_tensors
        self._matches[rows, width] = _Match(self._source, match, walked, self._of_texts)

    def _split(self, rows: int, texts: int, width: int) -> tuple[ov.Model, Lifted]:
        model = self._source.model.clone()
        sizes = dict(zip(self._names, (rows, texts, width), strict=True))
        model.reshape(
            {
                place: [sizes.get(str(size), size) for size in spec.shape]
                for place, spec in enumerate(self._source.inputs)
            }
        )
        walk, match = split(model, len(self._of_rows))
        return walk, lift_attention(match, lift=pooled_attention.available())


class _Match:
    """Matching the rows of a walk with a few texts.

    Args:
        source: graph that compiles models.
        match: model from the walk's outputs and text inputs to scores.
        walked: outputs of the walk, the first inputs of `match`.
        of_texts: inputs of `match` that belong to texts.

    Attributes:
        texts: largest number of texts per run.
    """

    def __init__(
        self,
        source: OpenVinoGraph,
        match: Lifted,
        walked: Sequence[ov.Tensor],
        of_texts: Sequence[TensorSpec],
    ) -> None:
        given = dict(zip(match.inputs, walked, strict=False))
        asked = dict(zip(match.inputs[len(walked) :], of_texts, strict=True))
        self._inputs: list[tuple[str, ov.Tensor]] = []
        requests = []
        for model in match.parts:
            # Has little arithmetic; attention maps are FP32 in either precision.
            exact: dict[str, Any] = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
            requests.append(request := source.compile(model, **exact).create_infer_request())
            for place, parameter in enumerate(model.get_parameters()):
                if (name := parameter.get_friendly_name()) in given:
                    request.set_input_tensor(place, given[name])  # the walk's output, not a copy
                elif name in asked:
                    self._inputs.append((asked[name].name, request.input_tensors[place]))
        self._steps: list[Callable[[], object]] = [request.infer for request in requests]
        if match.layers:
            before, after = requests
            layers = [
                PooledAttention(keys.data, given[it.queries].data, pooled.data, it.lam)
                for it, keys, pooled in zip(
                    match.layers, before.output_tensors, after.input_tensors, strict=False
                )
            ]
            width = tile_width() if source.bf16 else None
            self._steps.insert(1, partial(pool_attention, layers, source.threads, width))
        self._scores = requests[-1].output_tensors[0]
        self.texts: int = self._scores.shape[1]

    def run(self, feeds: Mapping[str, Array], texts: Array) -> Array:
        """Scores of the latest walk's rows with some texts, given by index: (rows, texts)."""
        for name, tensor in self._inputs:
            tensor.data[: len(texts)] = feeds[name][texts, : tensor.shape[1]]
            tensor.data[len(texts) :] = 0
        for step in self._steps:
            step()
        scores: Array = self._scores.data[:, : len(texts)]
        return scores
