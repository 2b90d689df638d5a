"""Compile one parsed graph to a TensorRT plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_trt.bundle.contract import Graph
from dsd_trt.engine.tensorrt.plan import Profile
from dsd_trt.engine.tensorrt.runner import NO_FULL_PRODUCTS, rtx_capabilities
from dsd_trt.engines.network import Network
from dsd_trt.errors import DsdError, EngineError, InputError
from dsd_trt.files.whole import write_whole

RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities TensorRT-RTX builds for by default: Ampere, Ada and Blackwell."""

Step = Callable[[float], None]

Shapes = Mapping[str, tuple[tuple[int, ...], ...]]
"""The least, best and greatest shape of each input."""


@dataclass(frozen=True)
class CompileSettings:
    """Build settings of a plan.

    Attributes:
        profiles: optimization profiles, each a minimum, optimum and maximum batch size.
        compute_capabilities: GPUs to build for, such as "8.6"; for TensorRT-RTX only, because
            TensorRT builds for the GPU it runs on.
        workspace: limit of GPU memory for a layer's intermediate results, in bytes; None means no
            limit.
        timing_cache: file in which TensorRT keeps measured kernel times between builds, created
            if missing; for TensorRT only.
    """

    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None


def batch_shapes(graph: Graph, profile: Profile) -> Shapes:
    """Shapes of a graph's inputs at the smallest, optimal and largest batch."""
    sizes = (profile.min, profile.opt, profile.max)
    return {spec.name: tuple(spec.of_batch(size) for size in sizes) for spec in graph.inputs}


def compile_plan(
    network: Network,
    profiles: Sequence[Shapes],
    settings: CompileSettings,
    step: Step = lambda share: None,
) -> Any:
    """Build a plan.

    Args:
        network: parsed network whose precision has been checked.
        profiles: shapes of the inputs, by optimization profile.
        settings: GPUs and limits of the build.
        step: callback `(share)`, called with the finished share, from 0 to 1.

    Returns:
        The library's host memory, readable with `memoryview`.

    Raises:
        InputError: the library cannot build for a GPU, or the timing cache is of no use.
        EngineError: the library failed; the message quotes its last error.
        KeyboardInterrupt: ctrl-C arrived during the build, where the library would swallow it.
    """
    trt = network.trt
    config = network.builder.create_builder_config()
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if settings.compute_capabilities:
        _set_capabilities(trt, config, settings.compute_capabilities)
    for shapes in profiles:
        made = network.builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            made.set_shape(name, least, best, most)
        config.add_optimization_profile(made)
    cache = None
    if settings.timing_cache is not None:
        cache = _timing_cache(config, settings.timing_cache)
    config.progress_monitor = monitor = _monitor(trt, step)
    plan = network.builder.build_serialized_network(network.definition, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        why = network.messages[-1] if network.messages else "it does not say why"
        raise EngineError(f"{trt.__name__} {trt.__version__} could not build a plan: {why}")
    if cache is not None and settings.timing_cache is not None:
        _save(settings.timing_cache, memoryview(cache.serialize()))
    return plan


def _set_capabilities(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    known = rtx_capabilities(trt)
    for capability in capabilities:
        if capability not in known:
            why = "does not know them"
            if capability == NO_FULL_PRODUCTS:
                why = "multiplies no FP32 matrices there, and attention logits are FP32"
            raise InputError(
                f"{trt.__name__} {trt.__version__} builds no plan for GPUs of compute capability "
                f"{capability}: it {why}. Choose from {', '.join(known)}, or build on the GPU "
                "itself: --engine tensorrt"
            )
    config.num_compute_capabilities = len(capabilities)
    for i, capability in enumerate(capabilities):
        config.set_compute_capability(known[capability], i)


def _timing_cache(config: Any, path: Path) -> Any:
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"cannot read the timing cache {path}: {error.strerror}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise InputError(
            f"{path} is no timing cache of this version of the library on this GPU; name another"
        )
    return cache


def _save(path: Path, content: memoryview) -> None:
    try:
        write_whole(path, content)
    except DsdError as error:
        raise InputError(f"the timing cache: {error}") from error


def _monitor(trt: Any, step: Step) -> Any:
    """A progress monitor that reports one share from 0 to 1.

    TensorRT's phases are nested. Each phase divides its part of the whole into equal steps.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._told = 0.0
            self._phases: dict[str, list[float]] = {}  # start, width, steps, finished steps

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            start, width = 0.0, 1.0
            if parent is not None and parent in self._phases:
                low, whole, count, done = self._phases[parent]
                start, width = low + whole * done / count, whole / count
            self._phases[name] = [start, width, max(steps, 1), 0]

        def phase_finish(self, name: str) -> None:
            if (phase := self._phases.pop(name, None)) is not None:
                self._tell(phase[0] + phase[1])

        def step_complete(self, name: str, done: int) -> bool:
            if (phase := self._phases.get(name)) is not None:
                phase[3] = min(done + 1, phase[2])
                self._tell(phase[0] + phase[1] * phase[3] / phase[2])
            return not self.interrupted

        def _tell(self, share: float) -> None:
            self._told = max(self._told, min(share, 1.0))  # some phases are reported twice
            try:
                step(self._told)
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()
