"""Compiling a bundle: every graph a plan, proven before and verified after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from dsd_trt.bundle.folder import Bundle, require_own
from dsd_trt.engine.tensorrt.plan import Plan, PlanLibrary, Sidecar, write_plan
from dsd_trt.engine.tensorrt.runner import load_library
from dsd_trt.engines.compile import RTX_CAPABILITIES, CompileSettings, compile_plan
from dsd_trt.engines.layers import LayerTable, check_precision
from dsd_trt.engines.network import parse
from dsd_trt.errors import InputError

PAIR_GRAPHS = ("image_encoder", "text_encoder", "pair_scorer")
"""What is built where nothing else is said: no engine on a GPU runs matrix mode yet."""


def build_plans(
    bundle: Bundle,
    library: PlanLibrary,
    settings: CompileSettings,
    graphs: Sequence[str] = (),
    *,
    stage: Callable[[str], None] = lambda name: None,
    step: Callable[[float], None] = lambda share: None,
) -> Iterator[tuple[Plan, LayerTable]]:
    """Compile graphs one after another; each plan is in the bundle when it is yielded.

    Args:
        bundle: a verified bundle.
        library: with what.
        settings: how. Without compute capabilities, TensorRT-RTX builds for `RTX_CAPABILITIES`.
        graphs: which; none are `PAIR_GRAPHS`.
        stage: told which graph is next.
        step: told which share of it is done.

    Raises:
        InputError: no such graph, a GPU the library cannot build for, or a bundle in the Hugging
            Face cache.
        EngineError: the library is not here, needs a GPU that is not here, or refuses a graph.
        LayerPrecisionError: a graph does not compute in the precision its bundle promises.
    """
    manifest = bundle.manifest
    require_own(bundle.folder)
    if unknown := set(graphs) - manifest.graphs.keys():
        raise InputError(
            f"the bundle has no graph {min(unknown)!r}; choose from {', '.join(manifest.graphs)}"
        )
    trt, settings = _prepare(library, settings)
    for name in graphs or PAIR_GRAPHS:
        stage(name)
        graph = manifest.graphs[name]
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


def _prepare(library: PlanLibrary, settings: CompileSettings) -> tuple[Any, CompileSettings]:
    """The library, and for which GPUs it builds."""
    trt = load_library(library)
    if library == "tensorrt-rtx":
        if settings.timing_cache is not None:
            raise InputError(
                "TensorRT-RTX measures no kernels while it builds: leave out --timing-cache"
            )
        return trt, replace(
            settings, compute_capabilities=settings.compute_capabilities or RTX_CAPABILITIES
        )
    if settings.compute_capabilities:
        raise InputError(
            "TensorRT builds for the GPU that it runs on: leave out --compute-capability, or build "
            "with --engine tensorrt-rtx"
        )
    from dsd_trt.engine.tensorrt.cuda import compute_capability

    return trt, replace(settings, compute_capabilities=(compute_capability(),))
