"""OpenVINO on the CPU, through its own package.

Its plugin for ONNX Runtime is not used: that one lists no device on AMD processors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.cache import cache_folder
from dsd_trt.contract import Graph, TensorSpec
from dsd_trt.engine import EngineDescription, check_signature, thread_limit
from dsd_trt.errors import EngineError

try:
    import openvino as ov
except ImportError as error:
    raise EngineError(
        f"openvino cannot be used here ({error}). Install it with: pip install 'dsd-trt[openvino]'"
    ) from error

DEVICE = "CPU"
_PRECISIONS = {"f32": "fp32", "f16": "fp16"}  # as the rest of the package calls them
_LARGE_BYTES = 500_000_000  # of weights: gigabytes are not put on a disk unasked


class OpenVinoEngine:
    """A graph compiled by OpenVINO; see `Engine`.

    What was compiled is kept for the next start, where the bundle's weights are small: OpenVINO
    keeps it with all of them, and has the content of graph and weights in its name.

    Args:
        path: the ONNX file.
        graph: its signature.
        bf16: compute in BF16, twice as fast where the processor has it; see `dsd_trt.bfloat16`.

    Raises:
        EngineError: openvino refuses the graph, or the processor has no BF16.

    Attributes:
        from_cache: whether nothing had to be compiled.
    """

    def __init__(self, path: Path, graph: Graph, *, bf16: bool = False) -> None:
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",  # all threads on the one batch that is asked for
            # Left to itself it takes BF16 where the processor has it, 7e-5 off the reference.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        }
        if threads := thread_limit():
            settings["INFERENCE_NUM_THREADS"] = threads
        core = ov.Core()
        if bf16 and "BF16" not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
            raise EngineError(
                "this processor does not compute in BF16. Score in FP32: --engine openvino"
            )
        weights = sum(file.stat().st_size for file in path.parent.glob("*.data"))
        if weights < _LARGE_BYTES and (cache := cache_folder()) is not None:
            # One a precision: for BF16, too, OpenVINO 2026.4 takes what was compiled for FP32, and
            # computes NaN.
            folder = cache / f"openvino-{settings['INFERENCE_PRECISION_HINT']}"
            settings["CACHE_DIR"] = str(folder)
        try:
            model = core.read_model(path)
            compiled = core.compile_model(model, DEVICE, settings)
        except Exception as error:  # its exceptions have no base of their own
            raise EngineError(f"openvino refuses {path}: {error}") from error
        # Compiling may rename tensors, but keeps their order.
        declared = {spec.name for spec in (*graph.inputs, *graph.outputs)}
        inputs = [_spec(port, declared) for port in model.inputs]
        outputs = [_spec(port, declared) for port in model.outputs]
        check_signature(path, graph, inputs, outputs)
        self._outputs = [spec.name for spec in outputs]
        self.from_cache: bool = compiled.get_property("LOADED_FROM_CACHE")
        self._request = compiled.create_infer_request()
        precision = compiled.get_property("INFERENCE_PRECISION_HINT")
        self.description = EngineDescription(
            f"openvino {ov.get_version().split('-')[0]}",
            f"{DEVICE} ({core.get_property(DEVICE, 'FULL_DEVICE_NAME').strip()})",
            _PRECISIONS.get(precision.get_type_name(), precision.get_type_name()),
        )

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `Engine.run`."""
        try:
            results = self._request.infer(dict(feeds), share_inputs=True)
        except Exception as error:
            raise EngineError(f"openvino failed: {error}") from error
        # The request owns its output memory and writes there again at the next run.
        return {name: np.array(results[i]) for i, name in enumerate(self._outputs)}


def _spec(port: Any, declared: set[str]) -> TensorSpec:
    # A tensor that is only passed on has the names of all its stations.
    name = min(port.get_names() & declared, default=port.get_any_name())
    dtype: Any = np.dtype(port.get_element_type().to_dtype()).name
    sizes = (d.get_length() if d.is_static else "?" for d in port.get_partial_shape())
    return TensorSpec(name, dtype, tuple(sizes))
