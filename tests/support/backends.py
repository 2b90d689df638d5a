"""Engines opened without a bundle, and a backend whose engines a test supplies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dsd_trt import Bundle, Engine
from dsd_trt.bundle.contract import Graph
from dsd_trt.engine import Backend
from dsd_trt.engine.onnxruntime.cpu import OnnxRuntimeEngine
from dsd_trt.engine.onnxruntime.matrix import OnnxRuntimeMatrixEngine
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
        opened = OnnxRuntimeEngine if graph.batched else OnnxRuntimeMatrixEngine
        return opened(path, graph)
    return OpenVinoEngine(path, graph) if graph.batched else OpenVinoMatrixEngine(path, graph)


@dataclass(frozen=True)
class OpenedBy(Backend):
    """A backend that opens engines with a function of the graph's file and signature."""

    function: Callable[[Path, Graph], Engine] = field(kw_only=True)

    def open(self, bundle: Bundle, graph: str) -> Engine:
        signature = bundle.manifest.graphs[graph]
        return self.function(bundle.path(signature.file), signature)


def opened_by(function: Callable[[Path, Graph], Engine], like: str | None = None) -> OpenedBy:
    """A backend whose engines a function opens.

    Args:
        function: opens an engine, given the graph's file and signature.
        like: name of the backend its ranking is checked against; None means no check.
    """
    return OpenedBy("by-hand", "by hand", "test", keeps_order_of=like, function=function)
