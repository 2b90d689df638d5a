"""Engines (compiled graphs with numpy inputs and outputs) and the backends that make them.

A backend is one file and one line of `BACKENDS`. There is no fallback: if the requested backend
cannot run, opening it fails.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.cores import usable_cores
from dsd_trt.errors import EngineError, InputError

if TYPE_CHECKING:  # commands list the engines in their help, which must not import numpy
    from numpy.typing import NDArray

    from dsd_trt.batching import BatchSizes
    from dsd_trt.bundle.folder import Bundle
    from dsd_trt.bundle.method import Mode

BACKENDS: dict[str, str] = {  # imported on use
    "onnxruntime": "dsd_trt.engine.onnxruntime.cpu:CPU",
    "onnxruntime-cuda": "dsd_trt.engine.onnxruntime.cuda:CUDA",
    "openvino": "dsd_trt.engine.openvino.backend:FP32",
    "openvino-bf16": "dsd_trt.engine.openvino.backend:BF16",
    "tensorrt": "dsd_trt.engine.tensorrt.backend:TENSORRT",
    "tensorrt-rtx": "dsd_trt.engine.tensorrt.backend:RTX",
}
"""Location of each backend by its name, as MODULE:OBJECT."""

BFLOAT16 = "openvino-bf16"
"""Name of the backend that computes in BF16."""

ON_GPU = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
"""Names of those that compute on a GPU: help lists them, and importing backends takes its time."""

AUTO = "auto"
AUTOMATIC = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime")
"""Candidates for `AUTO`, the fastest first."""


@dataclass(frozen=True)
class EngineDescription:
    """Actual properties of an engine, queried after compiling.

    Attributes:
        engine: name and version of the library.
        device: device the engine runs on; it begins with "CPU" for processors.
        precision: precision the engine computes in, such as "fp32".
    """

    engine: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} on {self.device}, {self.precision}"


class Engine(Protocol):
    """One compiled graph. Threads may share it."""

    @property
    def description(self) -> EngineDescription:
        """Library, device and precision of the engine."""
        ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once.

        Args:
            feeds: one array per input, by name, of the declared dtype and shape.

        Returns:
            One array per output, by name, owned by the caller.

        Raises:
            EngineError: the engine failed, the feeds do not match the declaration, the engine is
                closed, or this process was forked from the one that opened it.
        """
        ...

    def close(self) -> None:
        """Release memory and threads after the runs in progress; closing again has no effect."""
        ...


class TimedEngine(Engine, Protocol):
    """An engine of a GPU, which can be timed without copies."""

    def time(self, feeds: Mapping[str, NDArray[Any]], repeats: int) -> float:
        """Median time of one pass in seconds, with inputs and outputs on the GPU.

        Args:
            feeds: inputs of one batch, as for `run`.
            repeats: number of timed passes.
        """
        ...


@dataclass(frozen=True)
class Backend(ABC):
    """A library that compiles a bundle's graphs, with the properties the package asks for.

    Attributes:
        name: name on the command line, such as "openvino-bf16".
        title: name in tables, such as "OpenVINO, BF16".
        extra: extra that installs the library.
        modes: modes the backend supports.
        reads_graphs: whether it reads the bundle's ONNX files, which are then handed to it without
            links.
        on_gpu: whether it computes on a GPU.
        tunes_batch: whether the fastest batch size may be searched for; see `FastestBatch`.
        keeps_order_of: FP32 backend with which its ranking must agree, checked once per machine;
            None means no check.
        device: number of the GPU that it computes on, see `on_device`.
        threads: number of threads that it computes with on the processor, see `with_threads`; None
            is one per core that the process may run on.
        cache_compiled: whether compiled models of a large bundle are kept in the cache of this
            machine. They take gigabytes there; later starts are faster, and half of the memory is
            then pages of files. Backends without such a form ignore it.
        checks_itself: whether its engines, though not of `SharedEngine`, check what they are fed
            and what they give. A server's may take and give fewer tensors than a graph declares.
    """

    name: str
    title: str
    extra: str
    modes: frozenset[Mode] = frozenset(("pair", "matrix"))
    reads_graphs: bool = True
    on_gpu: bool = False
    tunes_batch: bool = True
    keeps_order_of: str | None = None
    device: int = 0
    checks_itself: bool = False
    threads: int | None = None
    cache_compiled: bool = False

    def require(self) -> None:  # noqa: B027 (most need nothing)
        """Fail now if the backend cannot work on this machine, before gigabytes are read.

        Raises:
            EngineError: library, driver, device or instruction set is missing; the message has the
                remedy.
        """

    def why_not(self, bundle: Bundle | None, graphs: Sequence[str]) -> str | None:
        """Reason why `AUTO` passes the backend over, or None if it can be used.

        Args:
            bundle: the verified bundle to score with; None if it is not known yet.
            graphs: names of the graphs that would be opened.
        """
        try:
            self.require()
        except EngineError as error:
            return str(error)
        return None

    def on_device(self, device: int) -> Self:
        """The backend on another GPU.

        Args:
            device: number of the GPU, from 0, as the driver counts those that are visible.

        Raises:
            InputError: the backend computes on the processor, or this is no number of a GPU.
        """
        if isinstance(device, bool) or not isinstance(device, Integral) or device < 0:
            raise InputError(f"no GPU {device!r}: devices are numbered 0, 1, 2, ...")
        device = int(device)
        if device and not self.on_gpu:
            raise InputError(
                f"{self.name} computes on the processor: leave the device out, or choose an engine "
                f"of a GPU: {', '.join(it.name for it in usable_entries() if it.on_gpu)}"
            )
        return replace(self, device=device)

    def with_threads(self, threads: int | None) -> Self:
        """The backend with a number of threads.

        Args:
            threads: number of threads to compute with; None is one per core that the process may
                run on.

        Raises:
            InputError: the backend computes on a GPU, or this is no number of threads.
        """
        if threads is None:
            return self
        if (
            isinstance(threads, bool)
            or not isinstance(threads, Integral)
            or not 0 < threads < 2**15
        ):
            raise InputError(f"threads must be a whole number above 0, got {threads!r}")
        if self.on_gpu:
            raise InputError(
                f"{self.name} computes on a GPU: leave threads out, or choose an engine of the "
                f"processor: {', '.join(it.name for it in usable_entries() if not it.on_gpu)}"
            )
        return replace(self, threads=int(threads))

    def within(self, bundle: Bundle, memory_budget_mb: float | None) -> Self:
        """The backend with its memory bounded, if it holds memory that can be.

        Args:
            bundle: the verified bundle to score with.
            memory_budget_mb: memory for activations, in MiB; None is the backend's own choice.

        Raises:
            InputError: the budget is not a number, or negative.
        """
        return self

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float | None) -> BatchSizes:
        """Largest batch of each graph.

        Args:
            bundle: the verified bundle to score with.
            memory_budget_mb: memory for activations, in MiB, at least 0; None is 1024.

        Raises:
            InputError: the budget is not a number, or negative.
        """
        from dsd_trt.batching import DEFAULT_MB, batch_sizes

        budget = DEFAULT_MB if memory_budget_mb is None else memory_budget_mb
        return batch_sizes(bundle.manifest, budget)

    @abstractmethod
    def open(self, bundle: Bundle, graph: str) -> Engine:
        """Compile one graph.

        Args:
            bundle: the verified bundle that holds the graph.
            graph: name of the graph, such as "pair_scorer".

        Raises:
            EngineError: the machine lacks something, as for `require`, or the library refuses the
                graph.
        """


def engine_names() -> tuple[str, ...]:
    """Values that `--engine` accepts."""
    return (AUTO, *BACKENDS)


def find_backend(name: str) -> Backend:
    """A backend by its name; nothing is asked of the machine.

    Raises:
        InputError: there is no backend of that name.
        EngineError: the entry of `BACKENDS` leads to no backend, or to one that contradicts it.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise InputError(f"no engine named {name!r}; choose from {', '.join(engine_names())}")
    entry = f"the entry {name!r} of BACKENDS, {BACKENDS[name]!r},"
    try:
        module, attribute = BACKENDS[name].split(":")
        backend = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module may be the user's own, and raise anything
        raise EngineError(
            f"{entry} cannot be opened ({type(error).__name__}: {error}). It must be "
            "MODULE:OBJECT, a module that can be imported and a Backend in it"
        ) from error
    if not isinstance(backend, Backend):
        raise EngineError(f"{entry} is {type(backend).__name__}, expected a Backend")
    if backend.name != name:
        raise EngineError(f"{entry} names itself {backend.name!r}: give both the same name")
    if (reference := backend.keeps_order_of) is not None and reference not in {*BACKENDS} - {name}:
        raise EngineError(f"{entry} keeps the order of {reference!r}, which is no other backend")
    return backend


def usable_entries() -> Iterator[Backend]:
    """The backends of `BACKENDS`, without entries that `find_backend` refuses."""
    for name in BACKENDS:
        with contextlib.suppress(EngineError):
            yield find_backend(name)


def thread_limit() -> int | None:
    """Number of threads if this process may not use the whole machine, otherwise None.

    The libraries count all cores of the machine, even if `taskset` or a container grants fewer.
    """
    allowed = usable_cores()
    return None if allowed == os.cpu_count() else allowed


def check_signature(
    path: Path, graph: Graph, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Compare the tensors an engine found in a file with those the manifest declares.

    A dimension left open by the file agrees with any size.

    Raises:
        EngineError: names, types or sizes of tensors differ.
    """
    for side, got, want in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
        found = {spec.name: spec for spec in got}
        if found.keys() != {spec.name for spec in want}:
            raise EngineError(
                f"{path} has {side} {sorted(found)} where its bundle says "
                f"{sorted(spec.name for spec in want)}"
            )
        for spec in want:
            if not _agree(found[spec.name], spec):
                raise EngineError(f"{path} has {found[spec.name]} where its bundle says {spec}")


def _agree(found: TensorSpec, declared: TensorSpec) -> bool:
    return (
        found.dtype == declared.dtype
        and len(found.shape) == len(declared.shape)
        and all(
            isinstance(size, str) or size == wanted
            for size, wanted in zip(found.shape, declared.shape, strict=True)
        )
    )
