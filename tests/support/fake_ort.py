"""A recording fake of ONNX Runtime's CUDA provider that computes on the CPU.

Inputs and outputs are read from, and written to, the addresses that were bound, in the memory of
`FakeCuda`. A recorded pass is replayed with the addresses of its recording and in its thread, as
a real CUDA graph is.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from fake_gpu import FakeCuda
from numpy.typing import NDArray

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class FakeOrt:
    """A fake of `onnxruntime`, as `onnxruntime-gpu` has it.

    Args:
        cuda: fake CUDA runtime that owns the memory.
        falls: whether sessions silently run on the CPU.
        on_cpu: operators that are placed on the CPU.
        refuses_recording: whether sessions that record CUDA graphs are refused.
        breaks: what is wrong with recorded passes: nothing, "fails" or "differs".
    """

    __version__ = "1.31.1"
    RunOptions: Any = onnxruntime.RunOptions

    def __init__(
        self,
        cuda: FakeCuda,
        *,
        falls: bool = False,
        on_cpu: Sequence[str] = ("Shape", "Gather"),
        refuses_recording: bool = False,
        breaks: str = "",
    ) -> None:
        self.cuda, self.falls, self.on_cpu = cuda, falls, on_cpu
        self.refuses_recording, self.breaks = refuses_recording, breaks
        self.sessions: list[FakeSession] = []

    def SessionOptions(self) -> Any:  # noqa: N802
        return FakeOptions()

    def InferenceSession(  # noqa: N802
        self, path: Path, options: FakeOptions, providers: Any, enable_fallback: int
    ) -> FakeSession:
        ((name, settings),) = providers
        assert name == CUDA
        assert enable_fallback == 0
        if self.refuses_recording and settings["enable_cuda_graph"] == "1":
            raise RuntimeError("This session cannot use the graph capture feature")
        self.cuda.cudaSetDevice(int(settings["device_id"]))  # as the real one does, for good
        self.sessions.append(FakeSession(self, path, options, settings))
        return self.sessions[-1]


class FakeOptions:
    """Options of a session, with all entries that were added."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.log_severity_level = 2
        self.use_deterministic_compute = False

    def add_session_config_entry(self, name: str, value: str) -> None:
        assert name not in self.entries
        self.entries[name] = value


class FakeSession:
    """A session that computes with the real library's CPU provider."""

    def __init__(
        self, ort: FakeOrt, path: Path, options: FakeOptions, settings: dict[str, str]
    ) -> None:
        self.ort, self.path, self.options, self.settings = ort, path, options, settings
        self._real = onnxruntime.InferenceSession(path, providers=[CPU])
        self.get_inputs, self.get_outputs = self._real.get_inputs, self._real.get_outputs
        self.runs: list[dict[str, str]] = []  # options of every pass
        self.recorded: dict[str, tuple[FakeBinding, int]] = {}
        self.released: list[int] = []

    def get_providers(self) -> list[str]:
        return [CPU] if self.ort.falls else [CUDA, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        assert self.options.entries["session.record_ep_graph_assignment_info"] == "1"

        def part(provider: str, operators: Sequence[str]) -> Any:
            nodes = [SimpleNamespace(name=f"n/{it}", op_type=it, domain="") for it in operators]
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

        return [part(CUDA, ["MatMul", "Softmax"]), part(CPU, self.ort.on_cpu)]

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def release_captured_graph(self, number: int) -> None:
        del self.recorded[str(number)]
        self.released.append(number)

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        entries = {
            key: options.get_run_config_entry(key)
            for key in ("gpu_graph_id", "memory.enable_memory_arena_shrinkage")
            if _has(options, key)
        }
        self.runs.append(entries)
        thread = threading.get_ident()
        number = entries.get("gpu_graph_id", "-1")
        if number != "-1":
            assert self.settings["enable_cuda_graph"] == "1"
            first, recorded_in = self.recorded.setdefault(number, (binding.copy(), thread))
            assert thread == recorded_in, "a CUDA graph belongs to the thread that recorded it"
            assert first.places == binding.places, "a CUDA graph has fixed addresses"
            binding = first
            if self.ort.breaks == "fails":
                raise RuntimeError("operation not permitted when stream is capturing")
        cuda = self.ort.cuda
        fed = {name: binding.read(cuda, name).copy() for name in binding.inputs}
        for spec, value in zip(self.get_outputs(), self._real.run(None, fed), strict=True):
            target = binding.read(cuda, spec.name)
            assert target.shape == value.shape
            assert target.dtype == value.dtype
            target[...] = value
            if number != "-1" and self.ort.breaks == "differs":
                target[...] += 1


def _has(options: Any, key: str) -> bool:
    try:
        options.get_run_config_entry(key)
    except RuntimeError:
        return False
    return True


class FakeBinding:
    """Addresses, types and shapes of inputs and outputs."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[int, Any, tuple[int, ...]]] = {}
        self.inputs: list[str] = []
        self.device = 0

    def copy(self) -> FakeBinding:
        made = FakeBinding()
        made.places, made.inputs = dict(self.places), list(self.inputs)
        return made

    def bind_input(
        self, name: str, kind: str, device: int, dtype: Any, shape: Sequence[int], address: int
    ) -> None:
        self.inputs.append(name)
        self.bind_output(name, kind, device, dtype, shape, address)

    def bind_output(
        self, name: str, kind: str, device: int, dtype: Any, shape: Sequence[int], address: int
    ) -> None:
        assert kind == "cuda"
        self.device = device
        self.places[name] = address, np.dtype(dtype), tuple(shape)

    def read(self, cuda: FakeCuda, name: str) -> NDArray[Any]:
        """The bound memory as an array, which has to be on the device."""
        address, dtype, shape = self.places[name]
        size = int(np.prod(shape)) * dtype.itemsize
        cuda.check(address, size, "device")
        content = (ctypes.c_char * size).from_address(address)
        return np.frombuffer(content, dtype).reshape(shape)
