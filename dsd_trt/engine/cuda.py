"""The few calls of the CUDA runtime that an engine needs, through NVIDIA's bindings.

Every call is checked, and every allocation is an object that frees itself.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dsd_trt.engine.driver import has_context, where_to_look
from dsd_trt.errors import EngineError

try:
    from cuda.bindings import runtime as cudart
except ImportError as error:
    raise EngineError(
        f"CUDA cannot be used here ({error}). Install its bindings, which each extra for GPUs "
        "brings: pip install 'cuda-bindings>=12.8'"
    ) from error


_ADVICE = {
    "cudaErrorMemoryAllocation": ". Free memory of the GPU, or make batches smaller: of plans with "
    "dsd-trt build BUNDLE --batch MIN,OPT,MAX, elsewhere with a smaller memory_budget_mb"
}


def call(function: str, *arguments: Any) -> Any:
    """Call a function of the runtime.

    Args:
        function: name of the function, such as "cudaMalloc".
        arguments: arguments of the function.

    Returns:
        The values after the error code: None, one value, or a tuple.

    Raises:
        EngineError: the error code reports a failure.
    """
    code, *results = getattr(cudart, function)(*arguments)
    if code != cudart.cudaError_t.cudaSuccess:
        name = cudart.cudaError_t(code).name
        raise EngineError(f"{function} failed: {name}{_ADVICE.get(name, '')}")
    return results[0] if len(results) == 1 else tuple(results) or None


def _free_with(owner: object, function: str, what: Any) -> None:
    """Free a resource with its owner; at process exit the driver frees everything."""
    weakref.finalize(owner, call, function, what).atexit = False


def use_device(device: int) -> None:
    """Choose the GPU of the calling thread; each thread begins with the first one."""
    call("cudaSetDevice", device)


@contextmanager
def on_device(device: int) -> Iterator[None]:
    """Choose the GPU of the calling thread within a block; its caller may be using another."""
    before = call("cudaGetDevice")
    use_device(device)
    try:
        yield
    finally:
        if before != device and has_context(before):
            use_device(before)


@contextmanager
def settled(device: int, *streams: Stream) -> Iterator[None]:
    """Work on a GPU within a block; after an error, nothing that it queued is still at work."""
    with on_device(device):
        try:
            yield
        except BaseException:  # nothing may write into the next run's buffers
            for stream in streams:
                with suppress(EngineError):
                    stream.synchronize()
            raise


def device_name(device: int) -> str:
    """Name of a GPU, such as "NVIDIA H200"."""
    name = call("cudaGetDeviceProperties", device).name
    return (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0")


def compute_capability(device: int = 0) -> str:
    """Compute capability of a GPU, such as "8.6".

    Args:
        device: number of the GPU, from 0.

    Raises:
        EngineError: there is no such GPU or no driver. Asking first avoids a crash in the library.
    """
    code, count = cudart.cudaGetDeviceCount()
    if code != cudart.cudaError_t.cudaSuccess or not count:
        why = cudart.cudaError_t(code).name if count is None else "none is visible to this process"
        raise EngineError(f"no CUDA device: {why}. Install NVIDIA's driver. {where_to_look()}")
    if device >= count:
        raise EngineError(
            f"there is no GPU {device}: this process sees {count}, numbered from 0. Choose another "
            f"--device. {where_to_look()}"
        )
    attribute = cudart.cudaDeviceAttr
    major = call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, device)
    minor = call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, device)
    return f"{major}.{minor}"


def memory_in_use(device: int = 0) -> int:
    """Bytes of a GPU's memory in use by all processes."""
    with on_device(device):
        free, total = call("cudaMemGetInfo")
    return int(total) - int(free)


def memory_size(device: int) -> int:
    """Bytes of a GPU's memory."""
    with on_device(device):
        _, total = call("cudaMemGetInfo")
    return int(total)


def free_memory() -> int:
    """Bytes of the GPU's memory that no process uses."""
    free, _ = call("cudaMemGetInfo")
    return int(free)


class Stream:
    """A queue of work for the GPU."""

    def __init__(self) -> None:
        self.handle: Any = call("cudaStreamCreate")
        _free_with(self, "cudaStreamDestroy", self.handle)

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        call("cudaStreamSynchronize", self.handle)

    def wait(self, event: Event) -> None:
        """Make all work queued from now on wait for an event of another stream."""
        call("cudaStreamWaitEvent", self.handle, event.handle, 0)


class Event:
    """A mark in a stream."""

    def __init__(self) -> None:
        self.handle: Any = call("cudaEventCreate")
        _free_with(self, "cudaEventDestroy", self.handle)

    def record(self, stream: Stream) -> None:
        """Set the mark after all work queued so far."""
        call("cudaEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Wait until the stream has reached the mark."""
        call("cudaEventSynchronize", self.handle)

    def since(self, earlier: Event) -> float:
        """Seconds from another mark to this one; both must be reached."""
        return float(call("cudaEventElapsedTime", earlier.handle, self.handle)) / 1000


class DeviceMemory:
    """Memory on the device only.

    Attributes:
        address: device address of the first byte.
        size: size of the memory in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.address: int = int(call("cudaMalloc", size))
        _free_with(self, "cudaFree", self.address)


class Buffer:
    """Memory for one tensor, on the device and in pinned host memory.

    Attributes:
        host: array in pinned host memory.
        device: address of the device memory.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        self._memory = DeviceMemory(size)
        self.device: int = self._memory.address
        address = int(call("cudaMallocHost", size))
        _free_with(self, "cudaFreeHost", address)
        self.host: NDArray[Any] = _array_at(address, tuple(shape), kind)

    def fill(self, values: NDArray[Any], stream: Stream, rows: int = 0) -> None:
        """Queue the copy of a whole array, of any shape that fits, to the device.

        Args:
            values: array to copy, rows first.
            stream: stream to queue in.
            rows: number of rows to fill up to, by repeating the last one.
        """
        count = len(values)
        target = self.view((max(count, rows), *values.shape[1:]))
        target[:count] = values
        target[count:] = values[-1]
        self._copy(target, stream, upload=True)

    def view(self, shape: Sequence[int]) -> NDArray[Any]:
        """The beginning of the host's memory as an array of another shape."""
        return self.host.reshape(-1)[: math.prod(shape)].reshape(shape)

    def fetch(self, shape: Sequence[int], stream: Stream) -> NDArray[Any]:
        """Queue the copy of an array to the host; valid once the stream is synchronised."""
        target = self.view(shape)
        self._copy(target, stream, upload=False)
        return target

    def copy_rows(self, source: int, runs: Sequence[tuple[int, int, int]], stream: Stream) -> None:
        """Queue copies of rows that are on the device already.

        Args:
            source: device address of an array with rows of the same size.
            runs: contiguous copies, as `Rows.runs` gives them.
            stream: stream to queue in.
        """
        row = self.host[:1].nbytes
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        for first, here, rows in runs:
            target = self.device + here * row
            call("cudaMemcpyAsync", target, source + first * row, rows * row, kind, stream.handle)

    def upload(self, rows: int, stream: Stream) -> None:
        """Queue the copy of the first rows to the device."""
        self._copy(self.host[:rows], stream, upload=True)

    def download(self, rows: int, stream: Stream) -> None:
        """Queue the copy of the first rows to the host."""
        self._copy(self.host[:rows], stream, upload=False)

    def _copy(self, part: NDArray[Any], stream: Stream, *, upload: bool) -> None:
        host = part.ctypes.data
        kinds = cudart.cudaMemcpyKind
        target, source, kind = (
            (self.device, host, kinds.cudaMemcpyHostToDevice)
            if upload
            else (host, self.device, kinds.cudaMemcpyDeviceToHost)
        )
        call("cudaMemcpyAsync", target, source, part.nbytes, kind, stream.handle)


def upload(values: NDArray[Any], stream: Stream) -> DeviceMemory:
    """A copy of an array on the device, complete when this returns."""
    values = np.ascontiguousarray(values)
    memory = DeviceMemory(max(values.nbytes, 1))
    kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
    arguments = (memory.address, values.ctypes.data, values.nbytes, kind, stream.handle)
    call("cudaMemcpyAsync", *arguments)
    stream.synchronize()
    return memory


class RecordedGraph:
    """Work recorded once and launched many times at low cost; addresses and sizes are fixed.

    Args:
        stream: stream to record while the block runs; nothing is executed meanwhile.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._executable: Any = None

    def __enter__(self) -> RecordedGraph:
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", self._stream.handle, mode)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        graph = call("cudaStreamEndCapture", self._stream.handle)
        if error is None:
            self._executable = call("cudaGraphInstantiate", graph, 0)
            _free_with(self, "cudaGraphExecDestroy", self._executable)
        call("cudaGraphDestroy", graph)

    def launch(self) -> None:
        """Queue the work."""
        call("cudaGraphLaunch", self._executable, self._stream.handle)


def _array_at(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A view of memory owned by another object."""

    class Memory:
        __array_interface__ = {  # noqa: RUF012
            "data": (address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    return np.asarray(Memory())
