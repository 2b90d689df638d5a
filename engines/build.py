"""Compile a bundle's graphs to TensorRT plans, one plan per graph, with their precision checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.place import require_own
from dsd_trt.engine.tensorrt.plan import Plan, PlanLibrary, Sidecar, write_plan
from dsd_trt.engine.tensorrt.runner import load_library
from dsd_trt.engines.compile import RTX_CAPABILITIES, CompileSettings, compile_plan
from dsd_trt.engines.layers import LayerTable, check_precision
from dsd_trt.engines.network import parse
from dsd_trt.errors import InputError

PAIR_GRAPHS = ("image_encoder", "text_encoder", "pair_scorer")
"""Graphs that are built by default: no GPU engine runs matrix mode yet."""


def build_plans(
    bundle: Bundle,
    library: PlanLibrary,
    settings: CompileSettings,
    graphs: Sequence[str] = (),
    *,
    stage: Callable[[str], None] = lambda name: None,
    step: Callable[[float], None] = lambda share: None,
    device: int = 0,
) -> Iterator[tuple[Plan, LayerTable]]:
    """Compile graphs one after another; each plan is in the bundle when it is yielded.

    Args:
        bundle: verified bundle in a folder of the user's own.
        library: TensorRT or TensorRT-RTX, the one the plans are built with.
        settings: build settings; without compute capabilities TensorRT-RTX builds for
            `RTX_CAPABILITIES`.
        graphs: names of the graphs to build; empty means `PAIR_GRAPHS`.
        stage: callback `(name)`, called with the graph that is built next.
        step: callback `(share)`, called with the finished share of that graph, from 0 to 1.
        device: number of the GPU, from 0, that TensorRT builds on.

    Yields:
        Each plan, and the layers that the parser made of its graph.

    Raises:
        InputError: there is no such graph, the library cannot build for a GPU, or the bundle lies
            in the Hugging Face cache.
        EngineError: the library or its GPU is missing, or it refuses a graph.
        LayerPrecisionError: a graph does not compute in the precision of its bundle.
    """
    manifest = bundle.manifest
    require_own(bundle.folder, "plans")
    if unknown := set(graphs) - manifest.graphs.keys():
        raise InputError(
            f"the bundle has no graph {min(unknown)!r}; choose from {', '.join(manifest.graphs)}"
        )
    trt, settings = _prepare(library, settings, device)
    for name in graphs or PAIR_GRAPHS:
        stage(name)
        graph = manifest.graphs[name]
        with gpu_to_build_on(device):
            network = parse(trt, bundle.path(graph.file))
            table = LayerTable.of(network)
            check_precision(table, manifest, name)
            content = memoryview(compile_plan(network, graph, settings, step))
        sidecar = Sidecar.of(
            content,
            manifest,
            name,
            library,
            str(trt.__version__),
            settings.compute_capabilities,
            settings.profiles,
        )
        yield write_plan(bundle.folder, content, sidecar), table


def require_settings(library: PlanLibrary, settings: CompileSettings) -> None:
    """Refuse settings that the library does not have, before a bundle is read.

    Raises:
        InputError: a setting belongs to the other library.
    """
    if library == "tensorrt-rtx" and settings.timing_cache is not None:
        raise InputError(
            "TensorRT-RTX measures no kernels while it builds: leave out --timing-cache"
        )
    if library == "tensorrt" and settings.compute_capabilities:
        raise InputError(
            "TensorRT builds for the GPU that it runs on: leave out --compute-capability, or build "
            "with --engine tensorrt-rtx"
        )


def gpu_to_build_on(device: int) -> AbstractContextManager[None]:
    """Choose the GPU to build on; nothing is asked for the first one, as RTX builds without any."""
    if not device:
        return nullcontext()
    from dsd_trt.engine.cuda import on_device

    return on_device(device)


def _prepare(
    library: PlanLibrary, settings: CompileSettings, device: int
) -> tuple[Any, CompileSettings]:
    """Import the library, and complete the settings with the GPUs to build for."""
    require_settings(library, settings)
    trt = load_library(library)
    if library == "tensorrt-rtx":
        return trt, replace(
            settings, compute_capabilities=settings.compute_capabilities or RTX_CAPABILITIES
        )
    from dsd_trt.engine.cuda import compute_capability

    return trt, replace(settings, compute_capabilities=(compute_capability(device),))
