"""Check a bundle on a GPU: scores beside FP32, times, throughput, memory and share of its peak."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.adapter_input import adapter_feed
from dsd_trt.bundle.folder import Bundle, is_large
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.real_files import with_real_files
from dsd_trt.engine import Backend, TimedEngine
from dsd_trt.engine.cuda import memory_in_use
from dsd_trt.engine.onnxruntime.cpu import CPU as ONNX_RUNTIME
from dsd_trt.engine.onnxruntime.cuda import OnnxRuntimeCuda
from dsd_trt.engine.self_check import SelfCheck, tolerance_of
from dsd_trt.engine.tensorrt.backend import TensorRT
from dsd_trt.engine.tensorrt.plan import Profile
from dsd_trt.engine.tensorrt.runner import TensorRTEngine
from dsd_trt.engines.gpu_check.feeds import MATRIX_SIZES, draw_feeds
from dsd_trt.engines.gpu_check.figures import (
    MATRIX,
    PAIR,
    REPEATS,
    Checked,
    CountMacs,
    Gpu,
    Scored,
    Timing,
)
from dsd_trt.engines.gpu_check.machine import computing_versions, describe_gpu, describe_host
from dsd_trt.engines.gpu_check.plans import (
    build_missing,
    has_plans,
    macs_of_plans,
    measure_peak,
)
from dsd_trt.engines.gpu_check.recorder import Recorder
from dsd_trt.engines.gpu_check.report import COMPARISON, FORM, PLAIN, GpuReport
from dsd_trt.pipeline import Pipeline

if TYPE_CHECKING:
    from dsd_trt.engine.onnxruntime.cuda_engine import CudaEngine

_IMAGES, _TEXTS = 4, ("a red circle", "a blue square to the left of a green star", "a dog")
_ROUNDS, _PAIRS = 3, 64  # of the throughput


def check_gpu(
    bundle: Bundle,
    backend: Backend,
    batches: Profile,
    *,
    macs: CountMacs | None = None,
    command: str = "",
    stage: Callable[[str], None] = lambda name: None,
    save: Callable[[GpuReport], None] = lambda report: None,
) -> GpuReport:
    """Build missing plans, score, compare with ONNX Runtime on the CPU, and measure.

    Args:
        bundle: verified bundle; in a folder of the user's own if plans are built.
        backend: backend of a GPU, on its device.
        batches: batch sizes to time, and of plans that are missing; existing plans keep theirs.
        macs: counts the arithmetic of a pass; None leaves it out, except for plans.
        command: command line that repeats the check, for the report.
        stage: callback `(name)`, called when a stage begins.
        save: callback `(report)`, called after every step with what is known by then.

    Returns:
        The report, which is not complete yet: PyTorch's figures may follow.

    Raises:
        EngineError: library or GPU is missing, or a plan cannot be built.
    """
    backend.require()
    gpu = describe_gpu(backend.device)
    steps = Recorder(_outline(bundle, backend, gpu, command), stage, save)
    if isinstance(backend, TensorRT):
        steps.note(build_seconds=build_missing(bundle, backend, batches, steps))
        macs = macs or macs_of_plans(bundle, backend)
    if backend.reads_graphs:
        bundle = with_real_files(bundle)
    plain = replace(bundle, manifest=replace(bundle.manifest, cuda_form=None))
    candidates: dict[str, tuple[Bundle, Backend]] = {PLAIN: (plain, backend)}
    if isinstance(backend, OnnxRuntimeCuda) and bundle.manifest.cuda_form:
        candidates[FORM] = (
            bundle,
            _Forms(**{it.name: getattr(backend, it.name) for it in fields(backend)}),
        )
    probe = Probe.of(bundle, backend)
    scores: dict[str, dict[Mode, NDArray[np.float32]]] = {}
    for name, (candidate, runs_it) in candidates.items():
        with steps.attempt(name):
            measured = _Candidate(name, candidate, runs_it, batches, macs, steps)
            with closing(measured.pipeline):
                scores[name] = measured.measure(probe)
    _choose(steps)
    if scores:
        stage("Scoring with ONNX Runtime on the CPU, in FP32")
        with steps.attempt(COMPARISON):
            reference = Pipeline(plain, ONNX_RUNTIME, 1024, self_check=False)
            with closing(reference):
                expected = probe.scores(reference)
            for name, found in scores.items():
                scored = {mode: _scored(got, expected[mode], probe) for mode, got in found.items()}
                steps.note_run(name, scored=scored)
    if isinstance(backend, TensorRT):
        stage("Timing a large product")
        with steps.attempt("large product"):
            peak = measure_peak(backend) / 1e12
            steps.note(peak_tflops={**steps.report.peak_tflops, backend.name: peak})
    return steps.report


def _outline(bundle: Bundle, backend: Backend, gpu: Gpu, command: str) -> GpuReport:
    manifest = bundle.manifest
    return GpuReport(
        when=datetime.now(UTC).isoformat(timespec="minutes"),
        command=command,
        engine=backend.name,
        gpu=gpu,
        machine=describe_host(),
        versions=computing_versions(),
        bundle=manifest.provenance.base_model,
        precision=manifest.precision,
        graph_hash=manifest.graph_hash(PAIR),
    )


class _Forms(OnnxRuntimeCuda):
    """The backend with every form for CUDA, right or wrong."""

    def open(self, bundle: Bundle, graph: str) -> CudaEngine:
        """See `Backend.open`."""
        if graph in (bundle.manifest.cuda_form or {}):
            return self.open_form(bundle, graph)
        return super().open(bundle, graph)


def _choose(steps: Recorder) -> None:
    """Note whether scoring takes the forms for CUDA: those that pass the bundle's self-check."""
    runs = steps.report.runs
    if FORM in runs and FORM not in steps.report.failures:
        checks = runs[FORM].self_check.values()
        steps.note(used=FORM if checks and all(it.passed for it in checks) else PLAIN)


@dataclass(frozen=True)
class Probe:
    """Images, texts and levels that are scored on the GPU and in FP32.

    Attributes:
        images: images of noise, uint8 (R, R, 3) each.
        texts: texts, each scored with every image.
        levels: indices of noise levels: the first and the last one of a large model.
        modes: modes that bundle and backend have, plans included.
    """

    images: tuple[NDArray[np.uint8], ...]
    texts: tuple[str, ...]
    levels: NDArray[np.int32]
    modes: tuple[Mode, ...]

    @classmethod
    def of(cls, bundle: Bundle, backend: Backend) -> Probe:
        """A probe for a bundle; smaller for a large one, whose passes take seconds on the CPU."""
        manifest, large = bundle.manifest, is_large(bundle.folder)
        side = manifest.preprocessing.resolution
        shape = (2 if large else _IMAGES, side, side, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        levels = all_levels(bundle)
        matrix = manifest.matrix is not None and "matrix" in backend.modes
        if matrix and isinstance(backend, TensorRT):  # plans of it may not have been built
            matrix = has_plans(bundle, backend, MATRIX)
        modes: tuple[Mode, ...] = ("pair", "matrix") if matrix else ("pair",)
        return cls(tuple(images), _TEXTS, levels[[0, -1]] if large else levels, modes)

    def scores(self, pipeline: Pipeline) -> dict[Mode, NDArray[np.float32]]:
        """Scores of each mode, (images, texts); NaN where they are not finite."""
        latent = pipeline.encode_images(list(self.images))
        texts = pipeline.encode_texts(self.texts)
        shape = (len(self.images), len(self.texts))
        image, text = (places.ravel() for places in np.indices(shape))
        found: dict[Mode, NDArray[np.float32]] = {}
        found["pair"] = pipeline.score(latent, texts, image, text, self.levels).reshape(shape)
        if "matrix" in self.modes:
            found["matrix"] = pipeline.score_matrix(latent, texts, self.levels)
        return found


def all_levels(bundle: Bundle) -> NDArray[np.int32]:
    """Indices of all of a bundle's noise levels."""
    return np.arange(len(bundle.manifest.method.noise_levels.fractions), dtype=np.int32)


def _scored(got: NDArray[np.float32], expected: NDArray[np.float32], probe: Probe) -> Scored:
    """Compare scores, (images, texts), with FP32's."""
    finite = np.isfinite(got) & np.isfinite(expected)
    difference = np.abs(got.astype(np.float64) - expected)[finite]
    order = (got.argsort(axis=1) == expected.argsort(axis=1)).all(axis=1)
    order &= finite.all(axis=1)
    return Scored(
        images=len(probe.images),
        texts=len(probe.texts),
        levels=len(probe.levels),
        not_finite=int((~np.isfinite(got)).sum()),
        max_difference=float(difference.max()) if difference.size else None,
        same_order=float(order.mean()),
        smallest_gap=float(np.nan_to_num(np.diff(np.sort(expected, axis=1), axis=1)).min()),
    )


class _Candidate:
    """The bundle's graphs, or their forms, on the GPU.

    Args:
        name: name of the run.
        bundle: bundle whose graphs are run.
        backend: backend of the GPU.
        batches: batch sizes to time.
        macs: counts the arithmetic of a pass, or None.
        steps: figures measured so far, which new ones are added to.
    """

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        backend: Backend,
        batches: Profile,
        macs: CountMacs | None,
        steps: Recorder,
    ) -> None:
        self._name, self._bundle, self._backend = name, bundle, backend
        self._batches, self._macs, self._steps = batches, macs, steps
        self.pipeline = Pipeline(bundle, backend, None, self_check=False)
        self._timings: list[Timing] = []

    def measure(self, probe: Probe) -> dict[Mode, NDArray[np.float32]]:
        """Note all figures; returns the scores of each mode."""
        steps, name, device = self._steps, self._name, self._backend.device
        steps.stage(f"Scoring on the GPU, {name}")
        before = memory_in_use(device)
        description = self.pipeline.compile()
        steps.note_run(name, engine=str(description))
        self._self_check(probe)
        scores = probe.scores(self.pipeline)
        steps.stage(f"Timing, {name}")
        profile = self._profile(PAIR)
        for rows in sorted({profile.min, profile.opt, profile.max}):
            self._time(PAIR, {"B": rows})
        if name == PLAIN:
            self._score(profile.opt)
        steps.note_run(name, memory_bytes=memory_in_use(device) - before)
        for graph in ("image_encoder", "text_encoder"):
            rows = self._profile(graph).opt
            self._time(graph, {"I": rows, "T": rows})
        if "matrix" in probe.modes:
            self._time(MATRIX, MATRIX_SIZES)
        rates = {}
        for mode in probe.modes:
            with steps.attempt(f"{name}, {mode} mode, pairs per second"):
                rates[mode] = _pairs_per_second(self._bundle, self.pipeline, mode)
        steps.note_run(name, pairs_per_second=rates)
        return scores

    def _self_check(self, probe: Probe) -> None:
        """Note how far each graph is from the results that PyTorch gave at export."""
        if (check := SelfCheck.read(self._bundle)) is None:
            return
        found: dict[str, Checked] = {}
        for name, graph in self._bundle.manifest.graphs.items():
            if name == MATRIX and "matrix" not in probe.modes:
                continue
            with self._steps.attempt(f"{self._name}, self-check of the {name}"):
                engine = self.pipeline.engine(name)
                fed = adapter_feed(self._bundle)
                worst = max(it.relative for it in check.differences(name, graph, engine, fed))
                allowed = tolerance_of(engine.description, check.tolerance)
                found[name] = Checked(worst if np.isfinite(worst) else None, allowed)
        self._steps.note_run(self._name, self_check=found)

    def _time(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Note the time of a pass."""
        batch = " x ".join(str(it) for key, it in sizes.items() if key != "L")
        with self._steps.attempt(f"{self._name}, {graph}, batch {batch}"):
            engine = cast("TimedEngine", self.pipeline.engine(graph))
            seconds = engine.time(draw_feeds(self._bundle, graph, sizes), REPEATS)
            counted = None if self._macs is None else self._macs(graph, sizes)
            self._timings.append(Timing.of(graph, seconds, sizes, counted))
            self._steps.note_run(self._name, timings=tuple(self._timings))

    def _score(self, rows: int) -> None:
        """Note scores of the timed inputs, which PyTorch's are compared with."""
        with self._steps.attempt(f"{self._name}, scores of batch {rows}"):
            feeds = draw_feeds(self._bundle, PAIR, {"B": rows})
            scores = self.pipeline.engine(PAIR).run(feeds)["score"]
            if np.isfinite(scores).all():
                self._steps.note(scores=tuple(map(float, scores)))

    def _profile(self, graph: str) -> Profile:
        """Batch sizes of a graph: those that were asked for, or those of its plan."""
        engine = self.pipeline.engine(graph)
        return engine.profiles[0] if isinstance(engine, TensorRTEngine) else self._batches


def _pairs_per_second(bundle: Bundle, pipeline: Pipeline, mode: Mode) -> float:
    """Throughput of scoring encoded pairs at all levels, the best of a few rounds."""
    feeds = draw_feeds(bundle, "image_encoder", {"I": 4})
    latent = pipeline.encode_images(list(feeds["pixels"]))
    texts = pipeline.encode_texts([_TEXTS[i % len(_TEXTS)] for i in range(_PAIRS // 4)])
    image, text = (places.ravel() for places in np.indices((4, _PAIRS // 4)))
    levels, seconds = all_levels(bundle), []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        if mode == "matrix":
            pipeline.score_matrix(latent, texts, levels)
        else:
            pipeline.score(latent, texts, image, text, levels)
        seconds.append(time.perf_counter() - began)
    return _PAIRS / min(seconds)
