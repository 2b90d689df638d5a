"""What only TensorRT's engines need of a check: plans, their arithmetic, and the library's peak."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing, nullcontext

import numpy as np

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.folder import Bundle
from dsd_trt.engine import EngineDescription
from dsd_trt.engine.tensorrt.backend import TensorRT
from dsd_trt.engine.tensorrt.plan import Profile, find_plans
from dsd_trt.engine.tensorrt.runner import TensorRTEngine, require
from dsd_trt.engines.build import build_plans, gpu_to_build_on
from dsd_trt.engines.compile import CompileSettings, batch_shapes, compile_plan
from dsd_trt.engines.gpu_check.figures import PAIR, REPEATS, CountMacs
from dsd_trt.engines.gpu_check.recorder import Recorder
from dsd_trt.engines.macs import count_macs
from dsd_trt.engines.network import Network, create_network, parse
from dsd_trt.errors import EngineError

_SIDE = 4096  # of the square matrices whose product measures the GPU's peak


def build_missing(bundle: Bundle, backend: TensorRT, profile: Profile, steps: Recorder) -> float:
    """Build the plans that a bundle lacks for this GPU.

    If those of a matrix scorer cannot be built, that is a line of the report, and pair mode is
    checked without it.

    Args:
        bundle: verified bundle in a folder of the user's own.
        backend: library and GPU to build for.
        profile: batch sizes of the plans.
        steps: figures so far, and the callback that names the plan being built.

    Returns:
        Seconds it took; 0 if none was missing.
    """
    _, capability = require(backend.name, backend.device)
    missing = [it for it in bundle.manifest.graphs if not has_plans(bundle, backend, it)]
    wanted = (capability,) if backend.name == "tensorrt-rtx" else ()
    began = time.monotonic()
    for graph in missing:
        needed = bundle.manifest.graphs[graph].batched
        with nullcontext() if needed else steps.attempt(f"plans of the {graph}"):
            for _ in build_plans(
                bundle,
                backend.name,
                CompileSettings((profile,), wanted),
                [graph],
                stage=lambda name: steps.stage(f"Building {name}"),
                device=backend.device,
            ):
                pass
    return time.monotonic() - began if missing else 0.0


def has_plans(bundle: Bundle, backend: TensorRT, graph: str) -> bool:
    """Whether a bundle has the plans that run a graph on this GPU.

    Args:
        bundle: verified bundle with the graph.
        backend: library and GPU that are to run them.
        graph: name of the graph, such as "pair_scorer".
    """
    trt, capability = require(backend.name, backend.device)
    version = str(trt.__version__)
    try:
        find_plans(bundle.folder, bundle.manifest, graph, backend.name, version, capability)
    except EngineError:
        return False
    return True


def macs_of_plans(bundle: Bundle, backend: TensorRT) -> CountMacs:
    """How to count the arithmetic of a bundle's graphs, as TensorRT's parser sees it.

    Args:
        bundle: verified bundle with the graphs.
        backend: library whose parser reads them.
    """
    trt, _ = require(backend.name, backend.device)
    known: dict[str, int] = {}

    def count(name: str, sizes: Mapping[str, int]) -> int | None:
        graph = bundle.manifest.graphs[name]
        if not graph.batched:  # two batches, and a network whose sizes are set is of no other use
            return None
        if name not in known:
            known[name] = count_macs(parse(trt, bundle.path(graph.file)), graph)  # of one row
        return known[name] * sizes["B" if name == PAIR else "I"]

    return count


def measure_peak(backend: TensorRT) -> float:
    """FLOP/s of one large FP16 matrix product.

    Args:
        backend: library and GPU that compute it.
    """
    trt, capability = require(backend.name, backend.device)
    wanted = (capability,) if backend.name == "tensorrt-rtx" else ()
    profile = Profile(1, 1, 1)
    with gpu_to_build_on(backend.device):
        network, graph = product(create_network(trt))
        settings = CompileSettings((profile,), wanted)
        plan = compile_plan(network, [batch_shapes(graph, profile)], settings)
    description = EngineDescription(backend.name, f"GPU {backend.device}", "fp16")
    content = bytes(memoryview(plan))
    engine = TensorRTEngine(trt, content, graph, (profile,), description, backend.device)
    with closing(engine):
        random = np.random.default_rng(0)
        feeds = {
            spec.name: random.standard_normal(spec.of_batch(1), np.float32).astype(spec.dtype)
            for spec in graph.inputs
        }
        return 2 * _SIDE**3 / engine.time(feeds, REPEATS)


def product(network: Network) -> tuple[Network, Graph]:
    """Fill a network with a single FP16 product: 2 x (B, _SIDE, _SIDE) -> (B, _SIDE, _SIDE)."""
    trt, definition = network.trt, network.definition
    shape = (-1, _SIDE, _SIDE)
    factors = [definition.add_input(name, trt.float16, shape) for name in ("a", "b")]
    plain = trt.MatrixOperation.NONE
    result = definition.add_matrix_multiply(factors[0], plain, factors[1], plain).get_output(0)
    result.name = "c"
    definition.mark_output(result)
    specs = [TensorSpec(name, "float16", ("B", _SIDE, _SIDE)) for name in ("a", "b", "c")]
    return network, Graph("product", tuple(specs[:2]), tuple(specs[2:]))
