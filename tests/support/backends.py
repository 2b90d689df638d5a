"""Engines opened without a bundle, and a backend whose engines a test supplies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsd_trt import Bundle, Engine
from dsd_trt.batching import BatchSizes, batch_sizes
from dsd_trt.bundle.contract import Graph
from dsd_trt.bundle.manifest import Mode
from dsd_trt.engine.onnxruntime import OnnxRuntimeEngine
from dsd_trt.engine.openvino.matrix import OpenVinoMatrixEngine
from dsd_trt.engine.openvino.runner import OpenVinoEngine


def open_engine(path: Path, graph: Graph, engine: str) -> Engine:
    """Open an ONNX file that need not belong to a bundle.

    Args:
        path: ONNX file of the graph.
        graph: signature of the graph, with its inputs and outputs.
        engine: name of the engine, "onnxruntime" or "openvino".
    """
    if engine == "onnxruntime":
        return OnnxRuntimeEngine(path, graph)
    return OpenVinoEngine(path, graph) if graph.batched else OpenVinoMatrixEngine(path, graph)


@dataclass(frozen=True)
class OpenedBy:
    """A backend that opens engines with a function of the graph's file and signature."""

    function: Callable[[Path, Graph], Engine]
    name: str = "by-hand"
    title: str = "by hand"
    extra: str = "test"
    modes: frozenset[Mode] = frozenset(("pair", "matrix"))
    reads_graphs: bool = True
    on_gpu: bool = False
    tunes_batch: bool = True
    keeps_order_of: str | None = None

    def require(self) -> None:
        """Do nothing: the test's own function needs no library."""

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float) -> BatchSizes:
        return batch_sizes(bundle.manifest, memory_budget_mb)

    def open(self, bundle: Bundle, graph: str) -> Engine:
        signature = bundle.manifest.graphs[graph]
        return self.function(bundle.path(signature.file), signature)
