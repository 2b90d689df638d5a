"""TensorRT and TensorRT-RTX on a GPU: runs plans made by `dsd-trt build`.

Buffers, streams and CUDA graphs come from NVIDIA's own bindings of the CUDA runtime. Polygraphy's
runner would not save code: it has no pinned memory, no CUDA graphs and no second set of buffers,
which make up most of this file.

It has not run on a GPU yet: it is checked against the libraries' real signatures and against a
recording stand-in (docs/tensorrt.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph
from dsd_trt.engine import EngineDescription, check_signature, find_backend
from dsd_trt.engine.cuda import (
    Buffer,
    Event,
    RecordedGraph,
    Stream,
    compute_capability,
    on_device,
    settled,
)
from dsd_trt.engine.shared import SharedEngine
from dsd_trt.engine.tensorrt.loaded import LoadedPlan, median_time
from dsd_trt.engine.tensorrt.plan import PlanLibrary, Profile, choose_profile
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
        self._plan = plan = LoadedPlan(trt, content, graph.file, description)
        check_signature(Path(graph.file), graph, plan.inputs, plan.outputs)
        self.profiles: tuple[Profile, ...] = profiles
        self.description: EngineDescription = description
        self._compute, self._upload = Stream(), Stream()
        most = max(profile.max for profile in self.profiles)
        self._slots = (_Slot(graph, most), _Slot(graph, most))
        self._launched: list[RecordedGraph] = []  # passes of the last run

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with settled(self._device, self._upload, self._compute):
            return self._run_in_parts(feeds)

    def _release(self) -> None:
        # Dependents are released before what they depend on.
        with on_device(self._device):
            self._launched = []
            self._plan.release()
            del self._slots, self._compute, self._upload

    def _run_in_parts(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        count, self._launched = self._rows(feeds), []
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
            feeds: inputs of one batch.
            repeats: number of timed passes.
        """
        self.run(feeds)
        with on_device(self._device):
            return median_time(self._launched, self._compute, repeats)

    def _rows(self, feeds: Mapping[str, Array]) -> int:
        """Number of items in a batch."""
        return next(len(feeds[spec.name]) for spec in self._graph.inputs if spec.batched)

    def _start(self, which: int, feeds: Mapping[str, Array], rows: slice) -> None:
        """Queue one part: upload of inputs, graph, download of outputs."""
        slot = self._slots[which]
        count = rows.stop - rows.start
        index, profile = choose_profile(self.profiles, count)
        fed = max(count, profile.min)
        for spec in self._graph.inputs:
            buffer, values = slot.inputs[spec.name], feeds[spec.name]
            if spec.batched:  # filled up to the plan's smallest batch
                buffer.fill(values[rows], self._upload, fed)
            else:
                buffer.fill(values, self._upload)
        slot.uploaded.record(self._upload)
        self._compute.wait(slot.uploaded)
        shapes = {spec.name: spec.of_batch(fed) for spec in self._graph.inputs}
        addresses = {name: it.device for name, it in (slot.inputs | slot.outputs).items()}
        key = (which, fed)
        self._launched.append(self._plan.launch(key, index, shapes, addresses, self._compute))
        for buffer in slot.outputs.values():
            buffer.download(count, self._compute)
        slot.done.record(self._compute)


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
