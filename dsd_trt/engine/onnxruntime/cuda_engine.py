"""A graph in a session of ONNX Runtime's CUDA provider."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.engine import EngineDescription, check_signature
from dsd_trt.engine.cuda import Buffer, DeviceMemory, Stream, device_name, upload, use_device
from dsd_trt.engine.onnxruntime.cpu import tensor_spec
from dsd_trt.engine.onnxruntime.libraries import PROVIDER, load_cuda
from dsd_trt.engine.rows import Rows
from dsd_trt.engine.shared import SharedEngine
from dsd_trt.errors import EngineError, one_line

_SLOTS = 8  # batch sizes with buffers of their own; the one used longest ago makes room
_SOURCES = 4  # arrays kept on the device: latents, text states and masks of one call
_KEPT = 2**30  # bytes of all of them; rows of larger arrays are gathered by the host
_WORKSPACE = 2**30  # beside activations: what convolutions may use

_SHAPE_OPERATORS = frozenset(
    (
        *("Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Cast", "Range"),
        *("Constant", "ConstantOfShape", "Reshape", "Add", "Sub", "Mul", "Div", "Min", "Max"),
        *("Equal", "Where", "ReduceProd", "Identity"),
    )
)
"""Operators that shapes are computed with; ONNX Runtime places them on the processor on purpose."""

Array = NDArray[Any]

logger = logging.getLogger(__name__)


def open_engine(path: Path, graph: Graph, device: int, arena: int, *, keeps: bool) -> CudaEngine:
    """Open a graph on a GPU, with all of its nodes there.

    Args:
        path: path of the ONNX file.
        graph: declared inputs and outputs of the graph.
        device: number of the GPU, from 0.
        arena: memory for activations, in bytes.
        keeps: whether passes are recorded as CUDA graphs and memory is kept from pass to pass, as
            for a scorer; otherwise it is given back after each pass.

    Raises:
        EngineError: something that CUDA needs is missing (`load_cuda`), the library refuses the
            graph, or would run part of it on the processor.
    """
    ort = load_cuda(device)
    try:
        session = open_session(ort, path, device, arena, recorded=keeps)
    except EngineError as error:
        if not keeps:
            raise
        logger.warning("%s is run without CUDA graphs: %s", path.name, error)
        session, keeps = open_session(ort, path, device, arena, recorded=False), False
    return CudaEngine(ort, session, path, graph, device, recorded=keeps)


def open_session(ort: Any, path: Path, device: int, arena: int, *, recorded: bool) -> Any:
    """Open a session, and check what it got.

    `session.disable_cpu_ep_fallback` is not set: it refuses every graph that computes a shape,
    which ONNX Runtime always does on the processor. So the placement of each node is read back.

    Args:
        ort: module of ONNX Runtime, from `load_cuda`.
        path: path of the ONNX file.
        device: number of the GPU, from 0.
        arena: memory for activations, in bytes.
        recorded: whether passes can be recorded as CUDA graphs.

    Raises:
        EngineError: the library refuses the graph, or a node that is no shape arithmetic is on the
            processor.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only, which are also raised
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    settings = {
        "device_id": str(device),
        "gpu_mem_limit": str(arena + _WORKSPACE),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search times kernels: other bits
        "use_tf32": "0",  # FP32 is FP32
        "enable_cuda_graph": "1" if recorded else "0",
    }
    try:
        session = ort.InferenceSession(path, options, [(PROVIDER, settings)], enable_fallback=0)
    except Exception as error:  # its exceptions share no base class
        raise EngineError(
            f"onnxruntime {ort.__version__} refuses {path} on GPU {device}: {one_line(error, 800)}"
        ) from error
    providers = session.get_providers()
    if not providers or providers[0] != PROVIDER:
        raise EngineError(
            f"onnxruntime {ort.__version__} took {providers} for {PROVIDER}, without an error. "
            "Look at its log (it is on standard error), and at nvidia-smi"
        )
    require_placement(session.get_provider_graph_assignment_info(), path)
    return session


def require_placement(assignment: Any, path: Path) -> None:
    """Refuse a session that computes more than shapes on the processor.

    Args:
        assignment: subgraphs with their providers, as a session reports them.
        path: path of the ONNX file.

    Raises:
        EngineError: an operator that computes is elsewhere, or nothing is on the GPU.
    """
    elsewhere = sorted(
        {
            node.op_type
            for part in assignment
            if part.ep_name != PROVIDER
            for node in part.get_nodes()
            if node.op_type not in _SHAPE_OPERATORS
        }
    )
    if elsewhere or not any(part.ep_name == PROVIDER for part in assignment):
        what = ", ".join(elsewhere) or "all of it"
        raise EngineError(
            f"onnxruntime has no CUDA kernel for a part of {path.name}, and would run it on the "
            f"processor: {what}. Use a newer onnxruntime-gpu, or export the bundle again"
        )


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
        recorded: whether the session can record passes.
    """

    gathers = True

    def __init__(
        self, ort: Any, session: Any, path: Path, graph: Graph, device: int, *, recorded: bool
    ) -> None:
        super().__init__(graph)
        self._ort, self._session = ort, session
        self._recorded, self._device = recorded, device
        inputs, outputs = (
            [tensor_spec(it) for it in side]
            for side in (session.get_inputs(), session.get_outputs())
        )
        check_signature(path, graph, inputs, outputs)
        half = any(spec.dtype == "float16" for spec in (*graph.inputs, *graph.outputs))
        self.description = EngineDescription(
            f"onnxruntime-gpu {ort.__version__}", device_name(device), "fp16" if half else "fp32"
        )
        self._slots: OrderedDict[tuple[tuple[int, ...], ...], _Slot] = OrderedDict()
        self._ids = iter(range(1, 2**31))  # of CUDA graphs
        self._sources: OrderedDict[int, tuple[weakref.ref[Array], DeviceMemory]] = OrderedDict()
        # A thread of its own: the library's CUDA graphs and handles belong to the thread that ran
        # first, and CUDA's current device is one a thread.
        self._worker = ThreadPoolExecutor(1, "cuda")
        self._stream: Stream = self._worker.submit(self._begin).result()

    def _begin(self) -> Stream:
        use_device(self._device)
        return Stream()

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        return self._on_worker(partial(self._pass, feeds))

    def _on_worker(self, work: Any) -> Any:
        future = self._worker.submit(work)
        try:
            return future.result()
        finally:
            wait([future])  # after Ctrl-C, too: nothing may write into the next pass's buffers

    def _release(self) -> None:
        # Dependents are released before what they depend on, on the thread that made them.
        self._worker.submit(self._drop).result()
        self._worker.shutdown()

    def _drop(self) -> None:
        self._slots.clear()
        self._sources.clear()
        del self._session, self._stream

    def _pass(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        slot = self._slot(feeds)
        for name, values in feeds.items():
            if isinstance(values, Rows) and values.source.nbytes > _KEPT:
                slot.inputs[name].fill(values.gathered(), self._stream)
            elif isinstance(values, Rows):
                slot.inputs[name].copy_rows(
                    self._source(values.source), values.runs(), self._stream
                )
            else:
                slot.inputs[name].fill(values, self._stream)
        self._stream.synchronize()
        self._compute(slot)
        for buffer in slot.outputs.values():
            buffer.download(len(buffer.host), self._stream)
        self._stream.synchronize()
        return {name: buffer.host.copy() for name, buffer in slot.outputs.items()}

    def _compute(self, slot: _Slot) -> None:
        try:
            self._session.run_with_iobinding(slot.binding, slot.options(self._ort))
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

        return float(self._on_worker(clock))

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
            while len(self._sources) >= _SOURCES or self._kept() + array.nbytes > _KEPT:
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
            return Buffer(
                [sizes[it] if isinstance(it, str) else it for it in spec.shape], spec.dtype
            )

        self.inputs = {spec.name: made(spec) for spec in graph.inputs}
        self.outputs = {spec.name: made(spec) for spec in graph.outputs}
        self.binding = session.io_binding()
        for buffers, bind in (
            (self.inputs, self.binding.bind_input),
            (self.outputs, self.binding.bind_output),
        ):
            for name, it in buffers.items():
                bind(name, "cuda", device, it.host.dtype.type, it.host.shape, it.device)
        self._number, self._passes = number, 0
        self._device = device

    def options(self, ort: Any) -> Any:
        """Options of the next pass: recorded from the second one on."""
        options = ort.RunOptions()
        if self._number is None:
            # What is not recorded is not run often: memory goes back to the scorer.
            options.add_run_config_entry(
                "memory.enable_memory_arena_shrinkage", f"gpu:{self._device}"
            )
        else:
            number = self._number if self._passes else -1
            options.add_run_config_entry("gpu_graph_id", str(number))
        self._passes += 1
        return options

    def forget(self, session: Any) -> None:
        """Release the recorded pass."""
        if self._number is not None and self._passes > 1:
            session.release_captured_graph(self._number)
