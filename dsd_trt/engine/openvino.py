"""OpenVINO on the CPU, through its own package.

Its plugin for ONNX Runtime is not used: that one lists no device on AMD processors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle import Graph
from dsd_trt.engine import EngineDescription, check_names, thread_limit
from dsd_trt.errors import EngineError

try:
    import openvino as ov
except ImportError as error:
    raise EngineError(
        f"openvino cannot be used here ({error}). Install it with: pip install 'dsd-trt[openvino]'"
    ) from error

DEVICE = "CPU"


class OpenVinoEngine:
    """A graph compiled by OpenVINO; see `Engine`."""

    def __init__(self, path: Path, graph: Graph) -> None:
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",  # all threads on the one batch that is asked for
            # Left to itself it takes BF16 where the processor has it, 7e-5 off the reference.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads := thread_limit():
            settings["INFERENCE_NUM_THREADS"] = threads
        core = ov.Core()
        try:
            self._model = core.compile_model(path, DEVICE, settings)
        except Exception as error:  # its exceptions have no base of their own
            raise EngineError(f"openvino refuses {path}: {error}") from error
        check_names(
            path,
            graph,
            [tensor.any_name for tensor in self._model.inputs],
            [tensor.any_name for tensor in self._model.outputs],
        )
        self._request = self._model.create_infer_request()
        precision = self._model.get_property("INFERENCE_PRECISION_HINT")
        self.description = EngineDescription(
            f"openvino {ov.get_version().split('-')[0]}",
            f"{DEVICE} ({core.get_property(DEVICE, 'FULL_DEVICE_NAME').strip()})",
            precision.get_type_name().replace("f", "fp", 1),
        )

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `Engine.run`."""
        try:
            results = self._request.infer(dict(feeds), share_inputs=True)
        except Exception as error:
            raise EngineError(f"openvino failed: {error}") from error
        # The request owns its output memory and writes there again at the next run.
        return {tensor.any_name: np.array(results[tensor]) for tensor in self._model.outputs}
