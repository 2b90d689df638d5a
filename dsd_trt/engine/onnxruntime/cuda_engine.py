"""A graph in a session of ONNX Runtime's CUDA provider."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.engine import EngineDescription, check_signature
from dsd_trt.engine.cuda import Buffer, DeviceMemory, Stream, device_name, upload
from dsd_trt.engine.onnxruntime.cpu import tensor_spec
from dsd_trt.engine.onnxruntime.cuda_session import open_session
from dsd_trt.engine.onnxruntime.cuda_thread import on_gpu_thread
from dsd_trt.engine.onnxruntime.libraries import load_cuda
from dsd_trt.engine.rows import Rows
from dsd_trt.engine.shared import SharedEngine
from dsd_trt.errors import EngineError, one_line
from dsd_trt.log import get_logger

_SLOTS = 8  # batch sizes with buffers of their own; the one used longest ago makes room
_SOURCES = 4  # arrays kept on the device: latents, text states and masks of one call
KEPT = 2**30
"""Bytes of arrays kept on the device; rows of larger ones are gathered by the host."""

_NOT_RECORDED = "graph capture"  # what ONNX Runtime says of a graph that it cannot record
_REPLAYED = 1e-2  # difference of a recorded pass, relative to an output's largest number

Array = NDArray[Any]

logger = get_logger(__name__)


def open_engine(
    path: Path, graph: Graph, device: int, memory: int, *, keeps: bool, channels_last: bool = False
) -> CudaEngine:
    """Open a graph on a GPU, with all of its nodes there.

    Args:
        path: path of the ONNX file.
        graph: declared inputs and outputs of the graph.
        device: number of the GPU, from 0.
        memory: memory for weights and activations, in bytes.
        keeps: whether passes are recorded as CUDA graphs and memory is kept from pass to pass, as
            for a scorer; otherwise it is given back after each pass.
        channels_last: whether convolutions take pixels of all channels together.

    Raises:
        EngineError: something that CUDA needs is missing (`load_cuda`), the library refuses the
            graph, or would run part of it on the processor.
    """
    ort = load_cuda(device)

    def open_it(recorded: bool) -> Any:
        return on_gpu_thread(
            device,
            lambda: open_session(
                ort, path, device, memory, recorded=recorded, channels_last=channels_last
            ),
        )

    recorded = keeps
    try:
        session = open_it(recorded)
    except EngineError as error:
        if not recorded or _NOT_RECORDED not in str(error):
            raise
        logger.warning("%s is run without CUDA graphs: %s", path.name, error)
        session, recorded = open_it(False), False
    return CudaEngine(ort, session, path, graph, device, keeps=keeps, recorded=recorded)


def _near(plain: Array, recorded: Array) -> bool:
    """Whether a recorded pass computed what the same pass did as it is; NaN equals NaN."""
    scale = float(np.nanmax(np.abs(plain), initial=0))
    return bool(np.allclose(plain, recorded, rtol=0, atol=_REPLAYED * scale, equal_nan=True))


class CudaEngine(SharedEngine):
    """A graph on a GPU; see `Engine`.

    Feeds may be `Rows`: their sources stay on the GPU from pass to pass. Every batch size has
    buffers of its own. Its first pass is run as it is, and later ones are recorded as a CUDA graph.

    Args:
        ort: module of ONNX Runtime, from `load_cuda`.
        session: session with the graph.
        path: path of the ONNX file.
        graph: declared inputs and outputs of the graph.
        device: number of the GPU, from 0.
        keeps: whether memory is kept from pass to pass.
        recorded: whether the session can record passes.
    """

    gathers = True

    def __init__(
        self,
        ort: Any,
        session: Any,
        path: Path,
        graph: Graph,
        device: int,
        *,
        keeps: bool,
        recorded: bool,
    ) -> None:
        super().__init__(graph)
        self._ort, self._session = ort, session
        self._keeps, self._recorded, self._device = keeps, recorded, device
        inputs, outputs = (
            [tensor_spec(it) for it in side]
            for side in (session.get_inputs(), session.get_outputs())
        )
        check_signature(path, graph, inputs, outputs)
        half = any(spec.dtype == "float16" for spec in (*graph.inputs, *graph.outputs))
        self.description: EngineDescription = EngineDescription(
            f"onnxruntime-gpu {ort.__version__}", device_name(device), "fp16" if half else "fp32"
        )
        self._slots: OrderedDict[tuple[tuple[int, ...], ...], _Slot] = OrderedDict()
        self._ids = iter(range(1, 2**31))  # of CUDA graphs
        self._sources: OrderedDict[int, tuple[weakref.ref[Array], DeviceMemory]] = OrderedDict()
        self._stream: Stream = on_gpu_thread(device, Stream)

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        return on_gpu_thread(self._device, partial(self._pass, feeds))

    def _release(self) -> None:
        # Dependents are released before what they depend on, on the thread that made them.
        on_gpu_thread(self._device, self._drop)

    def _drop(self) -> None:
        self._slots.clear()
        self._sources.clear()
        del self._session, self._stream

    def _pass(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        slot = self._slot(feeds)
        for name, values in feeds.items():
            if isinstance(values, Rows) and values.source.nbytes > KEPT:
                slot.inputs[name].fill(values.gathered(), self._stream)
            elif isinstance(values, Rows):
                slot.inputs[name].copy_rows(
                    self._source(values.source), values.runs(), self._stream
                )
            else:
                slot.inputs[name].fill(values, self._stream)
        self._stream.synchronize()
        if self._recorded and slot.passes == 1:
            return self._record(slot)
        self._compute(slot)
        return self._outputs(slot)

    def _record(self, slot: _Slot) -> dict[str, Array]:
        """Run a size once more as it is and once recorded, and compare.

        Another thread's calls of CUDA may break a recording; then nothing is recorded any more.
        """
        self._compute(slot, recorded=False)
        plain = self._outputs(slot)
        try:
            self._compute(slot)
            recorded, why = self._outputs(slot), "its recording computes something else"
        except EngineError as error:
            recorded, why = {}, str(error)
        if recorded and all(_near(plain[name], recorded[name]) for name in plain):
            return recorded
        logger.warning("%s is run without CUDA graphs from here on: %s", self._graph.file, why)
        self._recorded = False
        while self._slots:
            self._slots.popitem()[1].forget(self._session)
        return plain

    def _outputs(self, slot: _Slot) -> dict[str, Array]:
        for buffer in slot.outputs.values():
            buffer.download(len(buffer.host), self._stream)
        self._stream.synchronize()
        return {name: buffer.host.copy() for name, buffer in slot.outputs.items()}

    def _compute(self, slot: _Slot, *, recorded: bool = True) -> None:
        options = self._ort.RunOptions()
        if not self._keeps:
            place = f"gpu:{self._device}"
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", place)
        elif slot.number is not None:  # recorded from the second pass on
            number = slot.number if recorded and self._recorded and slot.passes else -1
            options.add_run_config_entry("gpu_graph_id", str(number))
        try:
            self._session.run_with_iobinding(slot.binding, options)
            slot.passes += 1
        except Exception as error:
            raise EngineError(
                f"onnxruntime failed on GPU {self._device}: {one_line(error, 800)}. If memory ran "
                "out: a smaller memory_budget_mb makes batches smaller"
            ) from error

    def time(self, feeds: Mapping[str, Array], repeats: int) -> float:
        """Median time of a pass in seconds, with inputs on the GPU and without copies.

        Args:
            feeds: inputs of one batch.
            repeats: number of timed passes.
        """
        for _ in range(3):  # as it is, recorded, replayed
            self.run(feeds)

        def clock() -> float:
            slot, seconds = self._slot(feeds), []
            for _ in range(repeats):
                began = perf_counter()
                self._compute(slot)  # returns when the GPU is done
                seconds.append(perf_counter() - began)
            return median(seconds)

        return float(on_gpu_thread(self._device, clock))

    def _slot(self, feeds: Mapping[str, Any]) -> _Slot:
        """Buffers for the shapes of a batch."""
        shapes = tuple(tuple(feeds[spec.name].shape) for spec in self._graph.inputs)
        if (slot := self._slots.pop(shapes, None)) is None:
            if len(self._slots) >= _SLOTS:
                _, oldest = self._slots.popitem(last=False)
                oldest.forget(self._session)
            number = next(self._ids) if self._recorded else None
            slot = _Slot(self._session, self._graph, shapes, self._device, number)
        self._slots[shapes] = slot
        return slot

    def _source(self, array: Array) -> int:
        """Device address of an array, which is copied there when it is first seen."""
        known = self._sources.pop(id(array), None)
        if known is None or known[0]() is not array:
            while len(self._sources) >= _SOURCES or self._kept() + array.nbytes > KEPT:
                self._sources.popitem(last=False)
            known = weakref.ref(array), upload(array, self._stream)
        self._sources[id(array)] = known
        return known[1].address

    def _kept(self) -> int:
        """Bytes of the arrays that are on the device."""
        return sum(memory.size for _, memory in self._sources.values())


class _Slot:
    """Buffers and bindings for one batch size.

    Args:
        session: session of the graph.
        graph: declared inputs and outputs of the graph.
        shapes: shapes of the inputs.
        device: number of the GPU, from 0.
        number: number of the CUDA graph that its passes are recorded as; None records none.
    """

    def __init__(
        self,
        session: Any,
        graph: Graph,
        shapes: tuple[tuple[int, ...], ...],
        device: int,
        number: int | None,
    ) -> None:
        sizes = {
            size: found
            for spec, shape in zip(graph.inputs, shapes, strict=True)
            for size, found in zip(spec.shape, shape, strict=True)
            if isinstance(size, str)
        }

        def made(spec: TensorSpec) -> Buffer:
            return Buffer(spec.of_sizes(sizes), spec.dtype)

        self.inputs = {spec.name: made(spec) for spec in graph.inputs}
        self.outputs = {spec.name: made(spec) for spec in graph.outputs}
        self.binding = session.io_binding()
        for buffers, bind in (
            (self.inputs, self.binding.bind_input),
            (self.outputs, self.binding.bind_output),
        ):
            for name, it in buffers.items():
                bind(name, "cuda", device, it.host.dtype.type, it.host.shape, it.device)
        self.number, self.passes = number, 0

    def forget(self, session: Any) -> None:
        """Release the recorded pass."""
        if self.number is not None and self.passes > 2:
            session.release_captured_graph(self.number)
