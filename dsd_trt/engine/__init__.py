"""Engines: one compiled graph each, numpy in and numpy out.

The engine asked for is the engine used: where it cannot run, opening it fails. Nothing falls back
silently.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.engine.tensorrt.plan import PLAN_LIBRARIES, PlanLibrary
from dsd_trt.errors import EngineError, InputError

if TYPE_CHECKING:  # commands list the engines in their help, which should not wait for numpy
    from numpy.typing import NDArray

EngineName = Literal["auto", "onnxruntime", "openvino", "openvino-bf16", "tensorrt", "tensorrt-rtx"]
ENGINES: tuple[str, ...] = get_args(EngineName)
BF16 = "openvino-bf16"


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


def open_engine(path: Path, graph: Graph, engine: str = "auto") -> Engine:
    """Compile one graph.

    Args:
        path: the ONNX file.
        graph: its signature, which the compiled graph must have.
        engine: "onnxruntime", "openvino", "openvino-bf16", or "auto": OpenVINO where it is
            installed, else ONNX Runtime.

    Raises:
        InputError: no engine of that name.
        EngineError: the engine is not installed, or refuses the graph.
    """
    if engine == "auto":
        engine = preferred_engine()
    if engine in ("openvino", BF16):
        if not graph.batched:
            from dsd_trt.engine.openvino.matrix import OpenVinoMatrixEngine

            return OpenVinoMatrixEngine(path, graph, bf16=engine == BF16)
        from dsd_trt.engine.openvino.runner import OpenVinoEngine

        return OpenVinoEngine(path, graph, bf16=engine == BF16)
    if engine == "onnxruntime":
        from dsd_trt.engine.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(path, graph)
    if engine in PLAN_LIBRARIES:
        from dsd_trt.engine.tensorrt.runner import open_plan

        return open_plan(path, graph, cast(PlanLibrary, engine))
    raise InputError(f"no engine named {engine!r}; choose from {', '.join(ENGINES)}")


def require_engine(engine: str) -> None:
    """Fail now if an engine cannot work on this machine, before gigabytes are read for it.

    Raises:
        InputError: there is none of that name.
        EngineError: it needs a GPU, a driver or a library that is not here.
    """
    if not isinstance(engine, str) or engine not in ENGINES:
        raise InputError(f"no engine named {engine!r}; choose from {', '.join(ENGINES)}")
    if engine in PLAN_LIBRARIES:
        from dsd_trt.engine.tensorrt.runner import require

        require(cast(PlanLibrary, engine))


def preferred_engine() -> str:
    """The engine "auto" stands for here.

    Raises:
        EngineError: none is installed.
    """
    for name in ("openvino", "onnxruntime"):
        if importlib.util.find_spec(name):
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
