"""OpenVINO on the CPU, through its own package.

Its plugin for ONNX Runtime is not used: that one lists no device on AMD processors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.batching import MAX_BATCH
from dsd_trt.bundle import is_large
from dsd_trt.cache import cache_folder
from dsd_trt.contract import Graph, TensorSpec
from dsd_trt.engine import EngineDescription, check_signature, thread_limit
from dsd_trt.errors import EngineError

try:
    import openvino as ov
    from openvino.frontend import FrontEndManager
except ImportError as error:
    raise EngineError(
        f"openvino cannot be used here ({error}). Install it with: pip install 'dsd-trt[openvino]'"
    ) from error

DEVICE = "CPU"
_PRECISIONS = {"f32": "fp32", "f16": "fp16"}  # as the rest of the package calls them
_STREAMS = (1, 2, 4)  # batches at once; more would be of fewer than 8 items each


class OpenVinoGraph:
    """A graph as OpenVINO reads it, and how it is compiled here.

    Args:
        path: the ONNX file.
        graph: its signature.
        bf16: compute in BF16, twice as fast where the processor has it; see `dsd_trt.bfloat16`.

    Raises:
        EngineError: openvino refuses the graph, or the processor has no BF16.

    Attributes:
        bf16: whether it computes in BF16.
        large: whether its operations are so long that each keeps all threads busy.
        threads: how many there are.
        model: to be given fixed sizes before it is compiled.
        inputs: as they were declared, in the model's order.
        outputs: their names, likewise.
    """

    def __init__(self, path: Path, graph: Graph, *, bf16: bool) -> None:
        self._path, self._core = path, ov.Core()
        if bf16 and "BF16" not in self._core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
            raise EngineError(
                "this processor does not compute in BF16. Score in FP32: --engine openvino"
            )
        self.bf16, self.large = bf16, is_large(path.parent)
        self.threads = thread_limit() or os.cpu_count() or 1
        self._settings: dict[str, Any] = {
            # Left to itself it takes BF16 where the processor has it, 7e-5 off the reference.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": self.threads,
        }
        if not self.large and (cache := cache_folder()) is not None:
            # One a precision: for BF16, too, OpenVINO 2026.4 takes what was compiled for FP32, and
            # computes NaN.
            folder = cache / f"openvino-{self._settings['INFERENCE_PRECISION_HINT']}"
            self._settings["CACHE_DIR"] = str(folder)
        try:
            # `Core.read_model` goes by content: of its own format, whatever the file's ending, it
            # reads weights from a file beside it that no bundle vouches for.
            onnx = FrontEndManager().load_by_framework("onnx")
            self.model = onnx.convert(onnx.load(str(path)))
        except Exception as error:  # its exceptions have no base of their own
            raise EngineError(f"openvino refuses {path}: {error}") from error
        # Compiling may rename tensors, but keeps their order.
        declared = {spec.name for spec in (*graph.inputs, *graph.outputs)}
        inputs = [_spec(port, declared) for port in self.model.inputs]
        outputs = [_spec(port, declared) for port in self.model.outputs]
        check_signature(path, graph, inputs, outputs)
        declared_inputs = {spec.name: spec for spec in graph.inputs}
        self.inputs = [declared_inputs[spec.name] for spec in inputs]
        self.outputs = [spec.name for spec in outputs]

    def compile(self, model: Any, sizes: Mapping[int, Sequence[int]], **settings: Any) -> Any:
        """Compile a model.

        Args:
            model: `model`, or a part of it.
            sizes: of its inputs, by place; those not named have theirs.
            settings: OpenVINO's, besides those for any graph.
        """
        try:
            if sizes:
                model.reshape(dict(sizes))
            return self._core.compile_model(model, DEVICE, {**self._settings, **settings})
        except Exception as error:
            raise EngineError(f"openvino refuses {self._path}: {error}") from error

    def describe(self, compiled: Any) -> EngineDescription:
        """What was compiled computes in what, asked of itself."""
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return EngineDescription(
            f"openvino {ov.get_version().split('-')[0]}",
            f"{DEVICE} ({self._core.get_property(DEVICE, 'FULL_DEVICE_NAME').strip()})",
            _PRECISIONS.get(precision, precision),
        )


class OpenVinoEngine:
    """A graph compiled by OpenVINO; see `Engine`.

    It is compiled for batches of fixed sizes, which lets OpenVINO fuse more than batches of any
    size: for one item and, where the model is small, for a part of `MAX_BATCH`. A small model's
    pass is hundreds of operations of microseconds each, so several parts run at once, on threads
    of their own (docs/speed.md). What was compiled is kept for the next start: OpenVINO keeps it
    with all the weights, and has the content of graph and weights in its name. A large model's
    operations keep all threads busy, and its items gain little from each other: 4 % with two at
    once on two threads, which one alone would pay for with twice its time.

    Args:
        path: the ONNX file.
        graph: its signature.
        bf16: compute in BF16, see `OpenVinoGraph`.

    Raises:
        EngineError: openvino refuses the graph, or the processor has no BF16.

    Attributes:
        from_cache: whether nothing had to be compiled.
    """

    def __init__(self, path: Path, graph: Graph, *, bf16: bool = False) -> None:
        self._source, self._graph = OpenVinoGraph(path, graph, bf16=bf16), graph
        large, threads = self._source.large, self._source.threads
        self._streams = 1 if large else max(n for n in _STREAMS if n <= threads)
        self._part = 1 if large else MAX_BATCH // self._streams
        self._queues: dict[int, ov.AsyncInferQueue] = {}
        compiled = self._compile(1)
        self.from_cache: bool = compiled.get_property("LOADED_FROM_CACHE")
        self.description = self._source.describe(compiled)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `Engine.run`."""
        count = next(len(feeds[spec.name]) for spec in self._graph.inputs if spec.batched)
        outputs = {
            spec.name: np.empty(spec.of_batch(count), spec.dtype) for spec in self._graph.outputs
        }
        try:
            for rows in self._cut(count):
                size = rows.stop - rows.start
                if size not in self._queues:
                    self._compile(size)
                part = {
                    spec.name: feeds[spec.name][rows] if spec.batched else feeds[spec.name]
                    for spec in self._graph.inputs
                }
                self._queues[size].start_async(part, (rows, outputs), share_inputs=True)
            for queue in self._queues.values():
                queue.wait_all()
        except Exception as error:
            raise EngineError(f"openvino failed: {error}") from error
        return outputs

    def _cut(self, count: int) -> Iterator[slice]:
        """Large parts, as many as keep all streams busy, and whatever is left one by one."""
        whole = count - count % (self._part * self._streams)
        yield from (slice(start, start + self._part) for start in range(0, whole, self._part))
        yield from (slice(start, start + 1) for start in range(whole, count))

    def _compile(self, size: int) -> Any:
        """Compile for batches of a size."""
        source = self._source
        sizes = {
            place: spec.of_batch(size) for place, spec in enumerate(source.inputs) if spec.batched
        }
        settings: dict[str, Any] = {"NUM_STREAMS": self._streams}
        if size == 1 and not source.large:
            # Fusing operations to kernels made for the purpose takes a fifth of compiling, and is
            # of no use to one item of a small model (docs/speed.md).
            settings["SNIPPETS_MODE"] = "DISABLE"
        compiled = source.compile(source.model, sizes, **settings)
        self._queues[size] = queue = ov.AsyncInferQueue(compiled, self._streams)
        queue.set_callback(self._collect)
        return compiled

    def _collect(self, request: Any, part: tuple[slice, dict[str, NDArray[Any]]]) -> None:
        """Keep a part's outputs: the request writes there again at its next run."""
        rows, outputs = part
        for place, name in enumerate(self._source.outputs):
            outputs[name][rows] = request.get_output_tensor(place).data


def _spec(port: Any, declared: set[str]) -> TensorSpec:
    # A tensor that is only passed on has the names of all its stations.
    name = min(port.get_names() & declared, default=port.get_any_name())
    dtype: Any = np.dtype(port.get_element_type().to_dtype()).name
    sizes = (d.get_length() if d.is_static else "?" for d in port.get_partial_shape())
    return TensorSpec(name, dtype, tuple(sizes))
