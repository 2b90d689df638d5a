"""Recording fakes of the CUDA runtime and TensorRT that execute queued work on synchronisation.

Memory is real, so a wrong address, size or order gives wrong numbers. Queued work reads its inputs
when it executes, not when it is queued. Reusing a buffer or reading a result too early is therefore
visible.
"""

# ruff: noqa: N802, N815 - the names are the CUDA runtime's

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph


class Error(enum.Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100


class Kind(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(enum.Enum):
    cudaStreamCaptureModeThreadLocal = 1


class Attribute(enum.Enum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


Work = Callable[[], None]


class FakeCuda:
    """A fake of `cuda.bindings.runtime`."""

    cudaError_t = Error
    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = CaptureMode
    cudaDeviceAttr = Attribute

    def __init__(self, capability: tuple[int, int] = (8, 6), room: int = 10**9) -> None:
        self.capability = capability
        self.room = room
        self.calls: list[str] = []
        self.memory: dict[int, tuple[str, Any]] = {}  # address: ("device" or "host", buffer)
        self.queues: dict[int, list[Work]] = {}
        self.events: dict[int, list[bool]] = {}  # whether the latest record of each is done
        self.graphs: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.current = threading.local()  # device of each thread
        self.gpus = 1
        self._handles = iter(range(1000, 10**6))

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and name[4].isupper() and name[4:] not in ("Error_t",):
            object.__getattribute__(self, "calls").append(name)
        return object.__getattribute__(self, name)

    # Devices

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, self.gpus

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, getattr(self.current, "device", 0)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        assert 0 <= device < self.gpus
        self.current.device = device
        return (Error.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, SimpleNamespace(name=b"Fake GPU")

    def cudaDeviceGetAttribute(self, what: Attribute, device: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, self.capability[what.name.endswith("Minor")]

    # Memory

    def _allocate(self, kind: str, size: int) -> tuple[Any, ...]:
        if kind == "device" and size + self.used("device") > self.room:
            return Error.cudaErrorMemoryAllocation, None
        buffer = ctypes.create_string_buffer(b"\xab" * size, size)
        address = ctypes.addressof(buffer)
        self.memory[address] = (kind, buffer)
        return Error.cudaSuccess, address

    def used(self, kind: str) -> int:
        return sum(len(buffer) for of, buffer in list(self.memory.values()) if of == kind)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("device", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate("host", size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        assert self.memory.pop(address)[0] == "device"
        return (Error.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        assert self.memory.pop(address)[0] == "host"
        return (Error.cudaSuccess,)

    def owns(self, address: int) -> bool:
        """Whether an address lies in memory that was allocated here."""
        return any(
            start <= address < start + len(buffer)
            for start, (_, buffer) in list(self.memory.items())
        )

    def check(self, address: int, size: int, kind: str) -> None:
        """Check that a memory range lies in a single buffer of a kind."""
        for start, (of, buffer) in list(self.memory.items()):
            if start <= address and address + size <= start + len(buffer):
                assert of == kind, f"{of} memory where {kind} memory is meant"
                return
        raise AssertionError("memory that was never allocated, or freed")

    # Streams

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        handle = next(self._handles)
        self.queues[handle] = []
        return Error.cudaSuccess, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del self.queues[stream]
        return (Error.cudaSuccess,)

    def queue(self, stream: int, work: Work) -> None:
        self.capturing.get(stream, self.queues[stream]).append(work)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream not in self.capturing, "waiting for a stream that is recorded"
        while self.queues[stream]:
            self.queues[stream].pop(0)()
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: Kind, stream: int
    ) -> tuple[Any, ...]:
        pageable = kind is Kind.cudaMemcpyHostToDevice and not self.owns(source)
        self.check(target, size, "host" if kind is Kind.cudaMemcpyDeviceToHost else "device")
        if not pageable:  # memory that CUDA did not allocate may be copied from as well
            up = kind is Kind.cudaMemcpyHostToDevice
            self.check(source, size, "host" if up else "device")

        def copy() -> None:
            ctypes.memmove(target, source, size)

        self.queue(stream, copy)
        return (Error.cudaSuccess,)

    # Events

    def cudaEventCreate(self) -> tuple[Any, ...]:
        handle = next(self._handles)
        self.events[handle] = [True]
        return Error.cudaSuccess, handle

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        del self.events[event]
        return (Error.cudaSuccess,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        done = self.events[event] = [False]
        self.queue(stream, lambda: done.__setitem__(0, True))
        return (Error.cudaSuccess,)

    def _run_until(self, done: list[bool]) -> None:
        for queue in self.queues.values():
            while not done[0] and queue and any(_marks(work, done) for work in queue):
                queue.pop(0)()
        assert done[0], "an event that nobody records"

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        done = self.events[event]
        self.queue(stream, lambda: self._run_until(done))
        return (Error.cudaSuccess,)

    def cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:
        self._run_until(self.events[event])
        return (Error.cudaSuccess,)

    milliseconds = 1.0

    def cudaEventElapsedTime(self, before: int, after: int) -> tuple[Any, ...]:
        assert self.events[before][0], "a mark that is not reached"
        assert self.events[after][0], "a mark that is not reached"
        return Error.cudaSuccess, self.milliseconds

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, (self.room - self.used("device")), self.room

    # Graphs

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[Any, ...]:
        self.capturing[stream] = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        handle = next(self._handles)
        self.graphs[handle] = self.capturing.pop(stream)
        return Error.cudaSuccess, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        handle = next(self._handles)
        self.graphs[handle] = self.graphs[graph]
        return Error.cudaSuccess, handle

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.graphs[graph]
        return (Error.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        for work in self.graphs[graph]:
            self.queue(stream, work)
        return (Error.cudaSuccess,)


def _marks(work: Work, done: list[bool]) -> bool:
    return any(cell.cell_contents is done for cell in (work.__closure__ or ()))


Shape = tuple[int, ...]
Compute = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


class FakeTensorRT:
    """A fake of `tensorrt` whose engine computes a Python function.

    Args:
        cuda: fake CUDA runtime that owns memory and streams.
        graph: signature with the engine's inputs and outputs.
        compute: function from inputs to outputs, both by name.
        profiles: minimum and maximum number of rows of each profile, or the least and the greatest
            shape of each input.
        shapes: function from the shapes of inputs to those of outputs; without one, every dynamic
            dimension is the number of rows.
    """

    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})

    def __init__(
        self,
        cuda: FakeCuda,
        graph: Graph,
        compute: Compute,
        profiles: Sequence[tuple[int, int] | Mapping[str, tuple[Shape, Shape]]],
        version: str = "10.13.3",
        shapes: Callable[[Mapping[str, Shape]], Mapping[str, Shape]] | None = None,
    ) -> None:
        self.__version__, self.shapes = version, shapes
        self.cuda, self.graph, self.compute, self.profiles = cuda, graph, compute, profiles
        self.deserialised: list[bytes] = []
        self.enqueued: list[tuple[int, int]] = []  # (profile, rows) per call, graph captures too
        self.activations = 4096

    def nptype(self, dtype: str) -> Any:
        return np.dtype(dtype).type

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._deserialise)

    def _deserialise(self, plan: bytes) -> Any:
        self.deserialised.append(plan)
        return FakeEngine(self) if plan.startswith(b"plan") else None


class FakeEngine:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        graph = trt.graph
        self._specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}
        self.num_io_tensors = len(self._specs)
        self.device_memory_size_v2 = trt.activations

    def get_tensor_name(self, index: int) -> str:
        return list(self._specs)[index]

    def get_tensor_dtype(self, name: str) -> str:
        return self._specs[name].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._specs[name].of_batch(-1)

    def get_tensor_mode(self, name: str) -> str:
        inputs = {spec.name for spec in self._trt.graph.inputs}
        return "in" if name in inputs else "out"

    def create_execution_context(self, strategy: str) -> Any:
        assert strategy == "user managed"
        return FakeContext(self._trt)


class FakeContext:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self._profile = 0
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._memory = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self._trt.activations
        self._trt.cuda.check(address, size, "device")
        self._memory = address

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        profile = self._trt.profiles[self._profile]
        (spec,) = (spec for spec in self._trt.graph.inputs if spec.name == name)
        self._shapes[name] = shape
        if isinstance(profile, Mapping):
            limits = zip(*profile[name], strict=True)
        else:
            least, most = profile
            limits = zip(spec.of_batch(least), spec.of_batch(most), strict=True)
        assert len(shape) == len(spec.shape)
        return all(low <= it <= high for it, (low, high) in zip(shape, limits, strict=True))

    def get_tensor_shape(self, name: str) -> Shape:
        graph = self._trt.graph
        assert self._shapes.keys() == {spec.name for spec in graph.inputs}
        if name in self._shapes:
            return self._shapes[name]
        if self._trt.shapes is not None:
            return tuple(self._trt.shapes(self._shapes)[name])
        (spec,) = (spec for spec in graph.outputs if spec.name == name)
        return spec.of_batch(self._rows())

    def _rows(self) -> int:
        graph = self._trt.graph
        return next(self._shapes[spec.name][0] for spec in graph.inputs if spec.batched)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self._memory, "no memory for activations"
        graph, addresses = self._trt.graph, dict(self._addresses)
        assert addresses.keys() == {spec.name for spec in (*graph.inputs, *graph.outputs)}
        self._trt.enqueued.append((self._profile, self._rows()))
        shapes = {it.name: self.get_tensor_shape(it.name) for it in (*graph.inputs, *graph.outputs)}

        def work() -> None:
            arrays = {}
            for spec in (*graph.inputs, *graph.outputs):
                shape = shapes[spec.name]
                size = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
                self._trt.cuda.check(addresses[spec.name], size, "device")
                content = (ctypes.c_char * size).from_address(addresses[spec.name])
                arrays[spec.name] = np.frombuffer(memoryview(content), spec.dtype).reshape(shape)
            for name, values in self._trt.compute(arrays).items():
                arrays[name][...] = values

        self._trt.cuda.queue(stream, work)
        return True
