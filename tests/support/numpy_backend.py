"""A complete backend in one file: ONNX's reference evaluator, in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from dsd_trt import Bundle, EngineDescription
from dsd_trt.batching import BatchSizes, batch_sizes
from dsd_trt.bundle.contract import Graph
from dsd_trt.bundle.manifest import Mode
from dsd_trt.engine.shared import SharedEngine


@dataclass(frozen=True)
class Numpy:
    """A backend that evaluates graphs in numpy; see `dsd_trt.engine.Backend`."""

    name: str
    modes: frozenset[Mode]
    title: str = "numpy"
    extra: str = "test"
    reads_graphs: bool = True
    on_gpu: bool = False
    tunes_batch: bool = False
    keeps_order_of: str | None = None

    def require(self) -> None:
        """Do nothing: numpy and onnx are installed with the tests."""

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float) -> BatchSizes:
        return batch_sizes(bundle.manifest, memory_budget_mb)

    def open(self, bundle: Bundle, graph: str) -> NumpyEngine:
        return NumpyEngine(bundle, bundle.manifest.graphs[graph])


BOTH = Numpy("numpy", frozenset(("pair", "matrix")))
PAIR = Numpy("numpy-pair", frozenset(("pair",)))


class NumpyEngine(SharedEngine):
    def __init__(self, bundle: Bundle, graph: Graph) -> None:
        super().__init__(graph)
        self.description = EngineDescription("numpy", "CPU", "fp32")
        self._evaluator = ReferenceEvaluator(str(bundle.path(graph.file)))
        self._names = [spec.name for spec in graph.outputs]

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = self._evaluator.run(self._names, dict(feeds))
        return {name: np.asarray(it) for name, it in zip(self._names, outputs, strict=True)}

    def _release(self) -> None:
        del self._evaluator
