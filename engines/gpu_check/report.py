"""The report of `dsd-trt gpu-check`, as JSON and as Markdown tables.

Keys of the JSON, which stay what they are: those of `GpuReport` and of the classes it holds, and
what is computed from them:

- "share_of_peak": arithmetic of the pair scorer at its best batch, by the fastest product; null
  where either was not measured.
- "matrix_over_pair": pairs per second of the matrix scorer, by those of the pair scorer at its best
  batch, at one level each.
- "form_over_plain": times of the plain graphs by those of the forms for CUDA, by graph and batch.
- "speedup": times of each contender in PyTorch by the engine's, by contender, graph and batch;
  above 1 the engine is faster.

A figure that could not be measured is left out; "failures" or "peer_failures" has the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from dsd_trt.engines.gpu_check.figures import MATRIX, PAIR, Gpu, Peer, Run, ratios_of
from dsd_trt.files.schema import to_plain

PLAIN, FORM = "plain", "form"
COMPARISON = "comparison with FP32"


@dataclass(frozen=True)
class GpuReport:
    """Results of a GPU check.

    Attributes:
        when: date and time in UTC, ISO 8601 to the minute.
        complete: whether the check came to its end; it is written after every step.
        command: command line that repeats the check.
        engine: name of the backend that computed.
        gpu: the GPU that was measured.
        machine: operating system, architecture and Python version of the host.
        versions: version of each installed library that computes here, by distribution.
        bundle: name of the bundle's base model.
        precision: precision of the bundle's graphs, "fp32" or "fp16".
        graph_hash: hash of the pair scorer and its weights.
        build_seconds: time to build the missing plans, in seconds; 0 if none was missing.
        used: which of the runs scoring takes, "plain" or "form".
        runs: figures of the engine, of "plain" graphs and of their "form" for CUDA.
        scores: scores of the pair scorer for its timed inputs of the best batch.
        peak_tflops: arithmetic of one large FP16 product, in TFLOP/s, by the library.
        peers: figures of PyTorch, in the bundle's precision, by contender.
        peer_memory_bytes: GPU memory that PyTorch held at most, in bytes.
        failures: reasons why figures of the engine are missing, by figure.
        peer_failures: reasons why figures of PyTorch are missing, by contender.
    """

    when: str
    command: str
    engine: str
    gpu: Gpu
    machine: str
    versions: Mapping[str, str]
    bundle: str
    precision: str
    graph_hash: str
    complete: bool = False
    build_seconds: float = 0.0
    used: str = PLAIN
    runs: Mapping[str, Run] = field(default_factory=dict)
    scores: tuple[float, ...] = ()
    peak_tflops: Mapping[str, float] = field(default_factory=dict)
    peers: Mapping[str, Peer] = field(default_factory=dict)
    peer_memory_bytes: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    peer_failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """Figures of the graphs that scoring takes; empty before they are measured."""
        return self.runs.get(self.used, Run())

    @property
    def complaints(self) -> list[str]:
        """Why the engine is not to be trusted; a time that is missing is no reason."""
        fatal = {
            key: why
            for key, why in self.failures.items()
            if key in (self.used, COMPARISON) or key.startswith(f"{self.used}, self-check")
        }
        return [*self.run.complaints, *(f"{key}: {why}" for key, why in fatal.items())]

    @property
    def share_of_peak(self) -> float | None:
        """Arithmetic of the pair scorer at its best, relative to the largest product's."""
        rates = [it.tflops for it in self.run.timings if it.graph == PAIR and it.tflops]
        peak = max(self.peak_tflops.values(), default=0)
        return max(rates) / peak if rates and peak else None

    @property
    def matrix_over_pair(self) -> float | None:
        """Pairs per second of matrix mode, relative to pair mode at its best batch."""
        best = {
            graph: max(it.pairs_per_second or 0 for it in self.run.timings if it.graph == graph)
            for graph in {it.graph for it in self.run.timings}
        }
        return best[MATRIX] / best[PAIR] if MATRIX in best and PAIR in best else None

    @property
    def form_over_plain(self) -> dict[str, dict[str, float]]:
        """Times of the plain graphs relative to those of their forms, by graph and batch."""
        if PLAIN not in self.runs or FORM not in self.runs:
            return {}
        return ratios_of(self.runs[PLAIN].timings, self.runs[FORM].timings)

    @property
    def speedup(self) -> dict[str, dict[str, dict[str, float]]]:
        """Times of PyTorch relative to the engine's, by contender, graph and batch."""
        return {name: ratios_of(it.timings, self.run.timings) for name, it in self.peers.items()}

    def to_json(self) -> str:
        """The whole report as indented JSON."""
        computed = {
            "share_of_peak": self.share_of_peak,
            "matrix_over_pair": self.matrix_over_pair,
            "form_over_plain": self.form_over_plain,
            "speedup": self.speedup,
        }
        return json.dumps({**to_plain(self), **computed}, indent=2, allow_nan=False) + "\n"
