"""Check a bundle on a GPU: correctness, throughput, memory and share of the GPU's peak."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.folder import Bundle
from dsd_trt.engine import EngineDescription
from dsd_trt.engine.cuda import memory_in_use
from dsd_trt.engine.onnxruntime.cpu import CPU as ONNX_RUNTIME
from dsd_trt.engine.tensorrt.backend import RTX, TENSORRT
from dsd_trt.engine.tensorrt.plan import PlanLibrary, Profile, find_plan
from dsd_trt.engine.tensorrt.runner import TensorRTEngine, require
from dsd_trt.engines.build import PAIR_GRAPHS, build_plans
from dsd_trt.engines.compile import CompileSettings, compile_plan
from dsd_trt.engines.macs import count_macs
from dsd_trt.engines.network import Network, create_network, parse
from dsd_trt.errors import DsdError, EngineError, InputError
from dsd_trt.files.whole import write_whole
from dsd_trt.pipeline import Pipeline

_SIDE = 4096  # of the square matrices whose product measures the GPU's peak
_REPEATS = 20
_IMAGES, _TEXTS = 4, ("a red circle", "a blue square to the left of a green star", "a dog")

Stage = Callable[[str], None]


@dataclass(frozen=True)
class GpuReport:
    """Results of a GPU check.

    Attributes:
        when: date and time in UTC, ISO 8601 to the minute.
        engine: library, version and GPU.
        machine: operating system, architecture and Python version of the host.
        bundle: name of the bundle's base model.
        precision: precision of the bundle's graphs, "fp32" or "fp16".
        build_seconds: time to build the missing plans, in seconds; 0 if none was missing.
        max_difference: largest absolute difference of a score from ONNX Runtime in FP32.
        same_order: share of images whose texts rank in the same order, from 0 to 1.
        batch: number of rows of the timed pass.
        pass_milliseconds: latency of one pair scorer pass over the batch, in milliseconds on the
            GPU.
        pairs_per_second: throughput at all of the bundle's levels, from encoded inputs on the
            host, copies included.
        memory_bytes: GPU memory of the plans and their buffers, in bytes.
        pass_tflops: arithmetic throughput of the timed pass, in TFLOP/s.
        peak_tflops: arithmetic throughput of one large FP16 matrix product, in TFLOP/s.
    """

    when: str
    engine: str
    machine: str
    bundle: str
    precision: str
    build_seconds: float
    max_difference: float
    same_order: float
    batch: int
    pass_milliseconds: float
    pairs_per_second: float
    memory_bytes: int
    pass_tflops: float
    peak_tflops: float

    @property
    def share_of_peak(self) -> float:
        """Throughput of a pass relative to the measured matrix product, from 0 to 1."""
        return self.pass_tflops / self.peak_tflops

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps({**asdict(self), "share_of_peak": self.share_of_peak}, indent=2) + "\n"

    def to_markdown(self) -> str:
        """The report as a Markdown table."""
        rows = {
            "largest score difference from FP32": f"{self.max_difference:.2g}",
            "images with the same ranking of texts": f"{self.same_order:.0%}",
            f"U-Net pass, batch {self.batch}": f"{self.pass_milliseconds:.2f} ms",
            "pairs per second, all levels": f"{self.pairs_per_second:.1f}",
            "GPU memory": f"{self.memory_bytes / 1e9:.2f} GB",
            "arithmetic of a pass": f"{self.pass_tflops:.1f} TFLOP/s",
            "arithmetic of one large FP16 product": f"{self.peak_tflops:.1f} TFLOP/s",
            "share of that peak": f"{self.share_of_peak:.1%}",
            "building plans": f"{self.build_seconds:.0f} s",
        }
        table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
        return (
            f"# GPU check\n\n{self.bundle}, {self.precision}, on {self.engine}; {self.machine}; "
            f"{self.when}\n\n| | |\n|---|---:|\n{table}\n"
        )


def check_gpu(
    bundle: Bundle, library: PlanLibrary, profile: Profile, stage: Stage = lambda name: None
) -> GpuReport:
    """Build missing plans, score, compare with ONNX Runtime, and measure.

    Args:
        bundle: verified bundle in a folder of the user's own.
        library: TensorRT or TensorRT-RTX, the one the plans are built with.
        profile: batch sizes for plans that are missing; existing plans keep theirs.
        stage: callback `(name)`, called when a stage begins.

    Raises:
        EngineError: library or GPU is missing, or a score is not finite.
    """
    trt, capability = require(library)
    before = memory_in_use()
    build_seconds = _build(bundle, library, profile, str(trt.__version__), capability, stage)

    stage("Scoring on the GPU and on ONNX Runtime")
    backend = TENSORRT if library == TENSORRT.name else RTX
    pipeline = Pipeline(bundle, backend, 1024)
    description = pipeline.compile()
    scores = _scores(bundle, pipeline)
    expected = _scores(bundle, Pipeline(bundle, ONNX_RUNTIME, 1024))
    order = (scores.argsort(axis=1) == expected.argsort(axis=1)).all(axis=1)
    memory = memory_in_use() - before

    stage("Timing")
    graph = bundle.manifest.graphs["pair_scorer"]
    path = bundle.path(graph.file)
    engine = backend.open(bundle, "pair_scorer")
    batch = engine.profiles[0].opt  # a plan that existed before may have another profile
    seconds = engine.time(_zeros(graph, batch), _REPEATS)
    macs = count_macs(parse(trt, path), graph)
    peak = _measure_peak(library, description)
    return GpuReport(
        when=datetime.now(UTC).isoformat(timespec="minutes"),
        engine=str(description),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        bundle=bundle.manifest.provenance.base_model,
        precision=bundle.manifest.precision,
        build_seconds=build_seconds,
        max_difference=float(np.abs(scores - expected).max()),
        same_order=float(order.mean()),
        batch=batch,
        pass_milliseconds=1000 * seconds,
        pairs_per_second=_pairs_per_second(bundle, pipeline),
        memory_bytes=memory,
        pass_tflops=2 * macs * batch / seconds / 1e12,
        peak_tflops=peak / 1e12,
    )


def _build(
    bundle: Bundle,
    library: PlanLibrary,
    profile: Profile,
    version: str,
    capability: str,
    stage: Stage,
) -> float:
    """Build the missing plans; returns the time it took, in seconds."""
    missing = []
    for name in PAIR_GRAPHS:
        try:
            find_plan(bundle.folder, bundle.manifest, name, library, version, capability)
        except EngineError:
            missing.append(name)
    if not missing:
        return 0.0
    wanted = (capability,) if library == "tensorrt-rtx" else ()
    began = time.monotonic()
    settings = CompileSettings((profile,), wanted)
    for _ in build_plans(
        bundle, library, settings, missing, stage=lambda name: stage(f"Building {name}")
    ):
        pass
    return time.monotonic() - began


def _scores(bundle: Bundle, pipeline: Pipeline) -> NDArray[np.float32]:
    """Scores of seeded noise images with a few texts, (images, texts)."""
    side = bundle.manifest.preprocessing.resolution
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, side, side, 3), np.uint8)
    latent, texts = pipeline.encode_images(list(images)), pipeline.encode_texts(_TEXTS)
    image, text = (places.ravel() for places in np.indices((_IMAGES, len(_TEXTS))))
    scores = pipeline.score(latent, texts, image, text, _levels(bundle))
    pipeline.require_finite(scores)
    return scores.reshape(_IMAGES, -1)


def _pairs_per_second(bundle: Bundle, pipeline: Pipeline) -> float:
    """Throughput of scoring encoded pairs, the best of three rounds."""
    side = bundle.manifest.preprocessing.resolution
    latent = pipeline.encode_images([np.zeros((side, side, 3), np.uint8)])
    texts = pipeline.encode_texts(_TEXTS)
    pairs = 64
    image, text = np.zeros(pairs, np.intp), np.arange(pairs) % len(_TEXTS)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        pipeline.score(latent, texts, image, text, _levels(bundle))
        seconds.append(time.perf_counter() - began)
    return pairs / min(seconds)


def _levels(bundle: Bundle) -> NDArray[np.int32]:
    return np.arange(len(bundle.manifest.method.noise_levels.fractions), dtype=np.int32)


def _zeros(graph: Graph, rows: int) -> dict[str, NDArray[np.generic]]:
    return {spec.name: np.zeros(spec.of_batch(rows), spec.dtype) for spec in graph.inputs}


def _measure_peak(library: PlanLibrary, description: EngineDescription) -> float:
    """FLOP/s of one large FP16 matrix product on this GPU with the same library."""
    trt, capability = require(library)
    network, graph = _product(create_network(trt))
    wanted = (capability,) if library == "tensorrt-rtx" else ()
    profile = Profile(1, 1, 1)
    plan = compile_plan(network, graph, CompileSettings((profile,), wanted))
    engine = TensorRTEngine(trt, bytes(memoryview(plan)), graph, (profile,), description)
    return 2 * _SIDE**3 / engine.time(_zeros(graph, 1), _REPEATS)


def _product(network: Network) -> tuple[Network, Graph]:
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


def write_report(report: GpuReport, out: Path) -> None:
    """Write the report as OUT.json and OUT.md.

    Raises:
        InputError: a file cannot be written.
    """
    try:
        write_whole(out.with_name(f"{out.name}.json"), report.to_json())
        write_whole(out.with_name(f"{out.name}.md"), report.to_markdown())
    except DsdError as error:
        raise InputError(str(error)) from error
