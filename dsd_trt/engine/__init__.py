"""Engines: one compiled graph each, numpy in and numpy out; and the backends that compile them.

A backend is one file and one line of `BACKENDS`. The one that is asked for is used: where it cannot
run, opening it fails. Nothing falls back silently.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.errors import EngineError, InputError

if TYPE_CHECKING:  # commands list the engines in their help, which should not wait for numpy
    from numpy.typing import NDArray

    from dsd_trt.batching import BatchSizes
    from dsd_trt.bundle.folder import Bundle
    from dsd_trt.bundle.manifest import Mode

BACKENDS: dict[str, str] = {  # imported when asked for
    "onnxruntime": "dsd_trt.engine.onnxruntime:CPU",
    "openvino": "dsd_trt.engine.openvino.backend:FP32",
    "openvino-bf16": "dsd_trt.engine.openvino.backend:BF16",
    "tensorrt": "dsd_trt.engine.tensorrt.backend:TENSORRT",
    "tensorrt-rtx": "dsd_trt.engine.tensorrt.backend:RTX",
}
"""Every backend by its name, and where it is: MODULE:OBJECT."""

AUTO = "auto"
_AUTOMATIC = ("openvino", "onnxruntime")  # what AUTO stands for, the first that is installed


@dataclass(frozen=True)
class EngineDescription:
    """What an engine really got, asked of it after compiling.

    Attributes:
        engine: library and version.
        device: what it runs on.
        precision: what it computes in.
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
        """Library, device and precision."""
        ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once.

        Args:
            feeds: one array for every input, by name, of the declared dtype and shape.

        Returns:
            Every output by name, owned by the caller.

        Raises:
            EngineError: the engine refused, the feeds are not as declared, it is closed, or this
                is a process forked from the one that opened it.
        """
        ...

    def close(self) -> None:
        """Give back its memory and threads, once nothing runs; closing again does nothing."""
        ...


class Backend(Protocol):
    """What can compile a bundle's graphs, and what the rest of the package may ask of it."""

    @property
    def name(self) -> str:
        """Its name on the command line, such as "openvino-bf16"."""
        ...

    @property
    def title(self) -> str:
        """Its name in tables, such as "OpenVINO, BF16"."""
        ...

    @property
    def extra(self) -> str:
        """The extra that installs its library: pip install 'dsd-trt[EXTRA]'."""
        ...

    @property
    def modes(self) -> frozenset[Mode]:
        """Modes it scores in."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        ...

    @property
    def tunes_batch(self) -> bool:
        """Whether the fastest batch size may be searched for; see `FastestBatch`."""
        ...

    @property
    def keeps_order_of(self) -> str | None:
        """Backend by whose ranking its own is checked, once on a machine; None needs no check."""
        ...

    def require(self) -> None:
        """Fail now if it cannot work on this machine, before gigabytes are read for it.

        Raises:
            EngineError: library, driver, device or instructions are missing; with the remedy.
        """
        ...

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float) -> BatchSizes:
        """Items per run of each graph.

        Args:
            bundle: what is scored with.
            memory_budget_mb: for activations, in MiB.

        Raises:
            InputError: the budget is no number, or below 0.
        """
        ...

    def open(self, bundle: Bundle, graph: str) -> Engine:
        """Compile one graph.

        Args:
            bundle: a verified bundle.
            graph: name of the graph, such as "pair_scorer".

        Raises:
            EngineError: as for `require`, or the library refuses the graph.
        """
        ...


def engine_names() -> tuple[str, ...]:
    """What `--engine` takes."""
    return (AUTO, *BACKENDS)


def find_backend(name: str) -> Backend:
    """A backend by its name; `AUTO` is the first of OpenVINO and ONNX Runtime that is installed.

    Raises:
        InputError: there is none of that name.
        EngineError: `AUTO`, and neither is installed.
    """
    if not isinstance(name, str) or name not in engine_names():
        raise InputError(f"no engine named {name!r}; choose from {', '.join(engine_names())}")
    module, _, attribute = BACKENDS[_preferred() if name == AUTO else name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)
    return backend


def require_backend(name: str) -> Backend:
    """As `find_backend`, of those that work on this machine.

    Raises:
        InputError: as for `find_backend`.
        EngineError: it does not; see `Backend.require`.
    """
    backend = find_backend(name)
    backend.require()
    return backend


def _preferred() -> str:
    for name in _AUTOMATIC:
        if importlib.util.find_spec(name):  # libraries of the same name
            return name
    raise EngineError("no engine is installed. Install one with: pip install 'dsd-trt[cpu]'")


def thread_limit() -> int | None:
    """How many threads to use where this process may not use the whole machine, else None.

    The libraries count the machine's cores, even where `taskset` or a container grants fewer.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return None if allowed == os.cpu_count() else allowed


def check_signature(
    path: Path, graph: Graph, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Compare the tensors an engine found in a file with those its manifest declares.

    A dimension the file leaves open agrees with any size.

    Raises:
        EngineError: names, types or sizes differ.
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
