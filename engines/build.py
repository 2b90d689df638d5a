"""Compile a bundle's graphs to TensorRT plans, with their precision checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.bundle.place import require_own
from dsd_trt.engine.tensorrt.plan import (
    PARTS,
    Part,
    Plan,
    PlanLibrary,
    Sidecar,
    title_of,
    write_plan,
)
from dsd_trt.engine.tensorrt.runner import load_library
from dsd_trt.engines.compile import RTX_CAPABILITIES, CompileSettings, compile_plan
from dsd_trt.engines.layers import LayerTable, check_precision
from dsd_trt.engines.source import read_source
from dsd_trt.errors import InputError


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
        graphs: names of the graphs to build; empty means all. The matrix scorer has two plans.
        stage: callback `(name)`, called with the graph or part that is built next.
        step: callback `(share)`, called with the finished share of it, from 0 to 1.
        device: number of the GPU, from 0, that TensorRT builds on.

    Yields:
        Each plan, and the layers that the parser made of its graph or part.

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
    for name, part in _parts(manifest, graphs):
        stage(title_of(name, part))
        with gpu_to_build_on(device):
            source = read_source(trt, bundle, name, part, settings.profiles)
            table = LayerTable.of(source.network)
            check_precision(table, manifest, name, part)
            plan = compile_plan(source.network, source.profiles, settings, step)
        content = memoryview(plan)
        sidecar = Sidecar.of(
            content,
            manifest,
            name,
            library,
            str(trt.__version__),
            settings.compute_capabilities,
            settings.profiles,
            part,
            source.texts,
            source.tokens,
        )
        yield write_plan(bundle.folder, content, sidecar), table


def _parts(manifest: Manifest, graphs: Sequence[str]) -> Iterator[tuple[str, Part | None]]:
    """Each plan to build: a graph, or a part of the matrix scorer."""
    for name in graphs or manifest.graphs:
        parts = (None,) if manifest.graphs[name].batched else PARTS
        yield from ((name, part) for part in parts)


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
