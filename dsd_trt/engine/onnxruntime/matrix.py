"""The matrix scorer on ONNX Runtime: one walk per row, matched with a few texts at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsd_trt.batching import walks_at_once
from dsd_trt.bundle.contract import Graph
from dsd_trt.engine import EngineDescription, check_signature, pooled_attention, thread_limit
from dsd_trt.engine.cut import CutGraph
from dsd_trt.engine.matrix import NUMBERS, Array, MatrixEngine
from dsd_trt.engine.onnxruntime.cpu import (
    describe,
    open_session,
    run_session,
    session_options,
    tensor_spec,
)
from dsd_trt.engine.pooled_attention import MOMENTS, Moments, PooledAttention, pool_attention
from dsd_trt.errors import EngineError, one_line


class OnnxRuntimeMatrixEngine(MatrixEngine):
    """The matrix scorer in ONNX Runtime's sessions; see `MatrixEngine`.

    Where `pool_attention` is available, the second part is cut again: a session computes keys,
    `pool_attention` the pooled attention without its maps, and another session the scores.

    Args:
        path: path of the ONNX file.
        graph: declared inputs and outputs, see `MatrixEngine`.
        large: whether the bundle's weights are large, see `walks_at_once`.
        frugal: whether FP16 weights are widened on use, as for `OnnxRuntimeEngine`.
        threads: number of threads to compute with; None is one per core.

    Raises:
        EngineError: ONNX Runtime refuses the graph.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        *,
        large: bool = False,
        frugal: bool = False,
        threads: int | None = None,
    ) -> None:
        super().__init__(graph, walks_at_once(large))
        self._threads = threads or thread_limit() or os.cpu_count() or 1

        def session(inputs: Mapping[str, str | None], outputs: Sequence[str]) -> Any:
            part = cut.part(inputs, outputs)
            return open_session(path, session_options(threads), frugal=frugal, part=part)

        rows: dict[str, str | None] = dict.fromkeys(self._of_rows)
        texts: dict[str, str | None] = dict.fromkeys(self._of_texts)
        self._outputs = [spec.name for spec in graph.outputs]
        try:
            cut = CutGraph(path.read_bytes(), self._of_texts)
            self._session = session(rows, cut.crossing)
            given = {**rows, **texts, **{it.name: it.type for it in self._session.get_outputs()}}
            self._attention = cut.attention
            self._keys = None
            if self._attention and pooled_attention.available():
                self._keys = session(given, self._names())
                lifted = [n for it in self._attention for n in (it.pooled, it.moments) if n]
                given |= dict.fromkeys(lifted, "tensor(float)")
            self._scores = session(given, self._outputs)
            read = cut.read_by(given, self._outputs)
            inputs = [it for it in self._scores.get_inputs() if it.name in {**rows, **texts}]
            outputs = self._scores.get_outputs()
        except EngineError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"onnxruntime refuses {path}: {one_line(error, 800)}") from error
        check_signature(
            path, graph, list(map(tensor_spec, inputs)), list(map(tensor_spec, outputs))
        )
        self._crossing = cut.crossing
        # Queries whose maps are made, because nothing lifts them out or something else reads them.
        self._mapped = [it.queries for it in cut.attention if it.queries in read]
        self._walked: dict[str, Array] = {}  # results of the last walk, and its inputs
        self.description: EngineDescription = describe(graph)

    def _walk(self, feeds: Mapping[str, Array], width: int) -> None:
        self._walked = {**feeds, **run_session(self._session, self._crossing, feeds)}

    def _match(self, feeds: Mapping[str, Array]) -> Array:
        if self._mapped:
            queries = (self._walked[it] for it in self._mapped)
            numbers = max(len(it) * it.shape[-1] for it in queries)  # of a text token
            tokens = next(len(row) for row in feeds[self._of_texts[0]])
            most = max(NUMBERS // (numbers * tokens), 1)
            feeds = {name: values[:most] for name, values in feeds.items()}
        given = {**self._walked, **feeds}
        if self._keys is not None:
            given |= self._pooled(given)
        (scores,) = run_session(self._scores, self._outputs, given).values()
        return scores

    def _pooled(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Pooled attention of every layer, and moments of its maps, by the names of the values."""
        made, layers = run_session(self._keys, self._names(), given), []
        found: dict[str, Array] = {}
        for it in self._attention:
            pooled = found[it.pooled] = np.empty(made[it.sizes][:4], np.float32)
            moments = None
            if it.basis is not None and it.moments is not None:
                sums = found[it.moments] = np.empty((*pooled.shape, MOMENTS), np.float32)
                moments = Moments(made[it.basis], sums)
            keys, queries = made[it.keys], given[it.queries]
            layers.append(PooledAttention(keys, queries, pooled, it.lam, moments))
        pool_attention(layers, self._threads)
        return found

    def _names(self) -> list[str]:
        """Names of what the session of keys computes, each once."""
        every = (n for it in self._attention for n in (it.keys, it.sizes, it.basis))
        return list(dict.fromkeys(name for name in every if name is not None))

    def _release(self) -> None:
        self._walked = {}
        del self._session, self._keys, self._scores
