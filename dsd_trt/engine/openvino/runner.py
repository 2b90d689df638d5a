"""A graph that runs on the CPU with OpenVINO, in parallel parts of a batch."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.batching import MAX_BATCH
from dsd_trt.bundle.contract import Graph
from dsd_trt.engine import EngineDescription
from dsd_trt.engine.openvino.graph import OpenVinoGraph
from dsd_trt.engine.shared import SharedEngine
from dsd_trt.errors import EngineError, one_line

if TYPE_CHECKING:  # `graph` says how to install it where it is missing
    import openvino as ov

_STREAMS = (1, 2, 4)  # parallel parts; more would have fewer than 8 items each


class OpenVinoEngine(SharedEngine):
    """A graph compiled by OpenVINO; see `Engine`.

    The graph is compiled for fixed batch sizes, which lets OpenVINO fuse more than for open ones:
    size 1 and, if the model is small, a fraction of `MAX_BATCH`.

    A pass of a small model is hundreds of operations of microseconds each. Several parts of a batch
    therefore run in parallel, each on its own threads (docs/speed.md). An operation of a large
    model keeps all threads busy. Running two items in parallel, one thread each, raises its
    throughput by 4 % but doubles the latency of a single item.

    Compiled models are cached for the next start. OpenVINO stores all weights with them, under a
    name derived from the content of graph and weights.

    Args:
        path: path of the ONNX file.
        graph: declared inputs and outputs of the graph.
        bf16: whether to compute in BF16, see `OpenVinoGraph`.
        large: whether the bundle's weights are large, see `OpenVinoGraph`.
        threads: number of threads to compute with, see `OpenVinoGraph`.
        cache_compiled: whether large compiled models are kept, see `OpenVinoGraph`.

    Raises:
        EngineError: OpenVINO refuses the graph, or the CPU does not support BF16.

    Attributes:
        from_cache: whether every compiled model came from the cache.
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
        super().__init__(graph)
        self._source = OpenVinoGraph(
            path,
            graph,
            bf16=bf16,
            large=large,
            batch=1,
            threads=threads,
            cache_compiled=cache_compiled,
        )
        parallel = self._source.threads
        self._streams = 1 if large else max(n for n in _STREAMS if n <= parallel)
        self._part = 1 if large else MAX_BATCH // self._streams
        self._requests: dict[int, list[ov.InferRequest]] = {}  # one per stream, by part size
        compiled = self._compile(1)
        self.from_cache: bool = compiled.get_property("LOADED_FROM_CACHE")
        self.description: EngineDescription = self._source.describe(compiled)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        count = next(len(feeds[spec.name]) for spec in self._graph.inputs if spec.batched)
        outputs = {
            spec.name: np.empty(spec.of_batch(count), spec.dtype) for spec in self._graph.outputs
        }
        running: deque[tuple[ov.InferRequest, slice]] = deque()  # oldest first
        try:
            for place, rows in enumerate(self._cut(count)):
                requests = self._prepare(rows.stop - rows.start)
                part = {
                    spec.name: feeds[spec.name][rows] if spec.batched else feeds[spec.name]
                    for spec in self._graph.inputs
                }
                if len(running) == self._streams:
                    self._collect(running, outputs)
                running.append((requests[place % self._streams], rows))
                running[-1][0].start_async(part, share_inputs=True)
            while running:
                self._collect(running, outputs)
        except Exception as error:
            raise EngineError(f"openvino failed: {one_line(error, 800)}") from error
        finally:  # after an error or Ctrl-C, no request may be busy at the next run
            for request, _ in running:
                with contextlib.suppress(Exception):
                    request.wait()
        return outputs

    def _release(self) -> None:
        self._requests.clear()
        del self._source

    def _cut(self, count: int) -> Iterator[slice]:
        """Large parts, as many as keep all streams busy, then the remaining items one by one."""
        whole = count - count % (self._part * self._streams)
        yield from (slice(start, start + self._part) for start in range(0, whole, self._part))
        yield from (slice(start, start + 1) for start in range(whole, count))

    def _prepare(self, size: int) -> list[ov.InferRequest]:
        """Inference requests for one batch size, compiled on first use."""
        if size not in self._requests:
            self._compile(size)
        return self._requests[size]

    def _compile(self, size: int) -> Any:
        """Compile for one batch size."""
        source = self._source
        settings: dict[str, Any] = {"NUM_STREAMS": self._streams}
        if size == 1 and not source.large:
            # Fusing operations into generated kernels takes a fifth of the compile time, and does
            # not speed up a single item of a small model (docs/speed.md).
            settings["SNIPPETS_MODE"] = "DISABLE"
        compiled = source.compile(source.sized(size), size, **settings)
        self._requests[size] = [compiled.create_infer_request() for _ in range(self._streams)]
        return compiled

    def _collect(
        self,
        running: deque[tuple[ov.InferRequest, slice]],
        outputs: dict[str, NDArray[Any]],
    ) -> None:
        """Wait for the oldest part and copy its outputs; its request reuses their memory."""
        request, rows = running[0]
        request.wait()
        for place, name in enumerate(self._source.outputs):
            outputs[name][rows] = request.get_output_tensor(place).data
        running.popleft()
