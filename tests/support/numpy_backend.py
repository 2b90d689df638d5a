"""A complete backend in one file: ONNX's reference evaluator, in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from dsd_trt import Bundle, EngineDescription
from dsd_trt.bundle.contract import Graph
from dsd_trt.engine import Backend
from dsd_trt.engine.shared import SharedEngine


class Numpy(Backend):
    """See `dsd_trt.engine.Backend`."""

    def open(self, bundle: Bundle, graph: str) -> NumpyEngine:
        return NumpyEngine(bundle, bundle.manifest.graphs[graph])


BOTH = Numpy("numpy", "numpy", extra="test")
PAIR = Numpy("numpy-pair", "numpy, pairs alone", extra="test", modes=frozenset(("pair",)))


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
