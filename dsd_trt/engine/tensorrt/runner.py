"""TensorRT and TensorRT-RTX on a GPU: runs plans made by `dsd-trt build`.

Buffers, streams and CUDA graphs come from NVIDIA's own bindings of the CUDA runtime. Polygraphy's
runner would not save code: it has no pinned memory, no CUDA graphs and no second set of buffers,
which make up most of this file.

It has not run on a GPU yet: it is checked against the libraries' real signatures and against a
recording stand-in (docs/tensorrt.md).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.engine import EngineDescription, check_signature, find_backend
from dsd_trt.engine.cuda import (
    Buffer,
    DeviceMemory,
    Event,
    RecordedGraph,
    Stream,
    compute_capability,
    on_device,
)
from dsd_trt.engine.shared import SharedEngine
from dsd_trt.engine.tensorrt.plan import PlanLibrary, Profile
from dsd_trt.errors import EngineError
from dsd_trt.installation import install_command

NO_FULL_PRODUCTS = "7.5"  # on Turing, TensorRT-RTX multiplies no FP32 matrices

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

Array = NDArray[Any]


def load_library(name: PlanLibrary) -> Any:
    """Import TensorRT or TensorRT-RTX, which share one Python interface.

    Raises:
        EngineError: the library is not installed.
    """
    try:
        return importlib.import_module(_MODULES[name])
    except (ImportError, OSError) as error:
        raise EngineError(
            f"{name} cannot be used here ({error}). Install it with: "
            f"{install_command(find_backend(name).extra)}"
        ) from error


def require(name: PlanLibrary, device: int = 0) -> tuple[Any, str]:
    """Check what an engine needs on this machine, before anything is read.

    Args:
        name: name of the library, "tensorrt" or "tensorrt-rtx".
        device: number of the GPU, from 0.

    Returns:
        The library, and the GPU's compute capability.

    Raises:
        EngineError: library, bindings, driver or GPU is missing, or TensorRT-RTX does not support
            the GPU, such as a data centre's Hopper.
    """
    trt, capability = load_library(name), compute_capability(device)
    if name == "tensorrt-rtx":
        able = rtx_capabilities(trt)
        if capability not in able:
            raise EngineError(
                f"TensorRT-RTX {trt.__version__} runs graphs whose attention logits are FP32 on "
                f"GPUs of compute capability {', '.join(able)}; this one has {capability}. Use "
                "TensorRT: --engine tensorrt"
            )
    return trt, capability


def rtx_capabilities(trt: Any) -> dict[str, Any]:
    """GPUs that TensorRT-RTX can run a bundle's graphs on: library constants by capability.

    The library supports Turing (7.5), but multiplies no FP32 matrices on it. It does not support
    data centre Hopper and Blackwell (9.0 and 10.0).
    """
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    known.pop(NO_FULL_PRODUCTS, None)
    return dict(sorted(known.items(), key=lambda item: float(item[0])))


class TensorRTEngine(SharedEngine):
    """A plan on the GPU; see `Engine`.

    Batches may have any size. Larger ones than the plan supports run in parts: inputs of one part
    are uploaded while the previous one is computed.

    Args:
        trt: the TensorRT or TensorRT-RTX module.
        content: bytes of the plan.
        graph: declared inputs and outputs of the graph.
        profiles: batch sizes the plan supports.
        description: library, device and precision of the plan.
        device: number of the GPU, from 0.
    """

    def __init__(
        self,
        trt: Any,
        content: bytes,
        graph: Graph,
        profiles: tuple[Profile, ...],
        description: EngineDescription,
        device: int = 0,
    ) -> None:
        super().__init__(graph)
        self._device = device
        with on_device(device):
            self._prepare(trt, content, profiles, description)

    def _prepare(
        self,
        trt: Any,
        content: bytes,
        profiles: tuple[Profile, ...],
        description: EngineDescription,
    ) -> None:
        graph = self._graph
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)  # has to outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineError(
                f"{description.engine} refuses the plan of {graph.file}. Build again: dsd-trt build"
            )
        _check_tensors(trt, self._engine, Path(graph.file), graph)
        self.profiles, self.description = profiles, description
        self._user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._activations = DeviceMemory(max(int(self._engine.device_memory_size_v2), 256))
        self._compute, self._upload = Stream(), Stream()
        most = max(profile.max for profile in self.profiles)
        self._slots = (_Slot(graph, most), _Slot(graph, most))
        # By slot and rows. A recording depends on its context's shapes, so each has its own.
        # Their activations share memory, because they run one after another.
        self._recorded: dict[tuple[int, int], tuple[Any, RecordedGraph]] = {}

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with on_device(self._device):
            try:
                return self._run_in_parts(feeds)
            except BaseException:  # nothing may write into the next run's buffers
                for stream in (self._upload, self._compute):
                    with contextlib.suppress(EngineError):
                        stream.synchronize()
                raise

    def _release(self) -> None:
        # Dependents are released before what they depend on.
        with on_device(self._device):
            self._recorded.clear()
            del self._slots, self._activations, self._compute, self._upload
            del self._engine, self._runtime

    def _run_in_parts(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        count = self._rows(feeds)
        outputs: dict[str, Array] = {
            spec.name: np.empty(spec.of_batch(count), spec.dtype) for spec in self._graph.outputs
        }
        most = max(profile.max for profile in self.profiles)
        parts = [slice(start, min(start + most, count)) for start in range(0, count, most)]
        for i, rows in enumerate(parts):
            slot = self._slots[i % 2]
            if i >= 2:  # the slot's previous part is collected as late as possible
                slot.collect(outputs, parts[i - 2])
            self._start(i % 2, feeds, rows)
        for i in range(max(len(parts) - 2, 0), len(parts)):
            self._slots[i % 2].collect(outputs, parts[i])
        return outputs

    def time(self, feeds: Mapping[str, Array], repeats: int) -> float:
        """Median GPU time of one batch in seconds, without copies.

        Args:
            feeds: inputs of one part, with at most as many rows as the plan supports.
            repeats: number of timed passes.
        """
        count = self._rows(feeds)
        self.run(feeds)
        _, profile = self._choose(count)
        _, recorded = self._recorded[0, max(count, profile.min)]
        with on_device(self._device):
            marks = [Event() for _ in range(repeats + 1)]
            marks[0].record(self._compute)
            for mark in marks[1:]:
                recorded.launch()
                mark.record(self._compute)
            marks[-1].synchronize()
            return median(after.since(before) for before, after in pairwise(marks))

    def _rows(self, feeds: Mapping[str, Array]) -> int:
        """Number of items in a batch."""
        return next(len(feeds[spec.name]) for spec in self._graph.inputs if spec.batched)

    def _start(self, which: int, feeds: Mapping[str, Array], rows: slice) -> None:
        """Queue one part: upload of inputs, graph, download of outputs."""
        slot = self._slots[which]
        count = rows.stop - rows.start
        index, profile = self._choose(count)
        fed = max(count, profile.min)
        for spec in self._graph.inputs:
            buffer, values = slot.inputs[spec.name], feeds[spec.name]
            if not spec.batched:
                buffer.host[:] = values
                buffer.upload(len(values), self._upload)
                continue
            buffer.host[:count] = values[rows]
            buffer.host[count:fed] = buffer.host[count - 1]  # pad to the plan's smallest batch
            buffer.upload(fed, self._upload)
        slot.uploaded.record(self._upload)
        self._compute.wait(slot.uploaded)
        if (recorded := self._recorded.get((which, fed))) is not None:
            recorded[1].launch()
        else:
            self._record(which, index, fed)
        for buffer in slot.outputs.values():
            buffer.download(count, self._compute)
        slot.done.record(self._compute)

    def _choose(self, count: int) -> tuple[int, Profile]:
        """The profile that supports a batch size and has the nearest optimum."""
        fitting = [(i, it) for i, it in enumerate(self.profiles) if count <= it.max]
        return min(fitting, key=lambda chosen: (abs(chosen[1].opt - count), chosen[1].max))

    def _record(self, which: int, index: int, fed: int) -> None:
        """Run a batch size for the first time, and record it for later runs."""
        slot, context = self._slots[which], self._create_context(index)
        for spec in self._graph.inputs:
            shape = spec.of_batch(fed)
            if not context.set_input_shape(spec.name, shape):
                raise EngineError(f"the plan takes no {spec.name} of {shape}")
        for name, buffer in (slot.inputs | slot.outputs).items():
            context.set_tensor_address(name, buffer.device)
        enqueue = partial(context.execute_async_v3, self._compute.handle)
        if not enqueue():  # setup work of the first run cannot be recorded
            raise EngineError("the GPU could not run the plan; the library's log says why")
        self._compute.synchronize()
        with RecordedGraph(self._compute) as recorded:
            enqueue()
        self._recorded[which, fed] = (context, recorded)

    def _create_context(self, index: int) -> Any:
        """An execution context for a profile; all contexts share memory for activations."""
        context = self._engine.create_execution_context(self._user_managed)
        if context is None:
            raise EngineError("no room on the GPU for another execution context")
        context.set_device_memory(self._activations.address, self._activations.size)
        context.set_optimization_profile_async(index, self._compute.handle)
        self._compute.synchronize()
        return context


class _Slot:
    """One set of buffers, for one part of a batch."""

    def __init__(self, graph: Graph, rows: int) -> None:
        self.inputs, self.outputs = (
            {spec.name: Buffer(spec.of_batch(rows), spec.dtype) for spec in specs}
            for specs in (graph.inputs, graph.outputs)
        )
        self.uploaded, self.done = Event(), Event()

    def collect(self, outputs: dict[str, Array], rows: slice) -> None:
        """Wait for a part, and copy its outputs."""
        self.done.synchronize()
        for name, buffer in self.outputs.items():
            outputs[name][rows] = buffer.host[: rows.stop - rows.start]


def _check_tensors(trt: Any, engine: Any, path: Path, graph: Graph) -> None:
    """Compare the plan's tensors with the bundle's declaration."""
    specs: dict[Any, list[TensorSpec]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        dtype: Any = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
        sizes = tuple(size if size >= 0 else "?" for size in engine.get_tensor_shape(name))
        specs[engine.get_tensor_mode(name)].append(TensorSpec(name, dtype, sizes))
    check_signature(path, graph, specs[trt.TensorIOMode.INPUT], specs[trt.TensorIOMode.OUTPUT])
