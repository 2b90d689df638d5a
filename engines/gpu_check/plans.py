"""What only TensorRT's engines need of a check: plans, their arithmetic, and the library's peak."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing

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

    Args:
        bundle: verified bundle in a folder of the user's own.
        backend: library and GPU to build for.
        profile: batch sizes of the plans.
        steps: figures so far, and the callback that names the plan being built.

    Returns:
        Seconds it took; 0 if none was missing.
    """
    trt, capability = require(backend.name, backend.device)
    version, missing = str(trt.__version__), []
    for name in bundle.manifest.graphs:
        try:
            find_plans(bundle.folder, bundle.manifest, name, backend.name, version, capability)
        except EngineError:
            missing.append(name)
    if not missing:
        return 0.0
    wanted = (capability,) if backend.name == "tensorrt-rtx" else ()
    began = time.monotonic()
    for _ in build_plans(
        bundle,
        backend.name,
        CompileSettings((profile,), wanted),
        missing,
        stage=lambda name: steps.stage(f"Building {name}"),
        device=backend.device,
    ):
        pass
    return time.monotonic() - began


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
