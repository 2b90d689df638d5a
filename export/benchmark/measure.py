"""Measuring one contender in a process of its own, so that its peak memory is its own as well."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dsd_trt.bundle.manifest import Mode
from dsd_trt.engine import BACKENDS, find_backend
from dsd_trt.export.benchmark.work import Contender, Floats, Work


@dataclass(frozen=True)
class Measured:
    """What was measured of a contender.

    Attributes:
        encode_seconds: of every round, images and texts.
        score_seconds: of every round, pairs.
        passes: walks through the U-Net a round.
        macs: of them, a round.
        precision: what it multiplies in.
        peak_mib: most memory the process had.
        scores: of the pairs, rows are pictures.
        refused: why scoring would refuse it; empty if it would not.
    """

    encode_seconds: tuple[float, ...]
    score_seconds: tuple[float, ...]
    passes: int
    macs: float
    precision: str
    peak_mib: float
    scores: tuple[tuple[float, ...], ...]
    refused: str = ""


_MATRIX = "-matrix"  # what the names of matrix mode end with
_ON_CPU = [it for it in map(find_backend, BACKENDS) if not it.on_gpu]
RUNTIME: dict[str, str] = {
    **{it.name: f"dsd-trt on {it.title}" for it in _ON_CPU},
    **{
        it.name + _MATRIX: f"dsd-trt on {it.title}, matrix mode"
        for it in _ON_CPU
        if "matrix" in it.modes
    },
}
"""Contenders that are this package: every backend of a CPU, in each of its modes."""

CONTENDERS: dict[str, str] = {
    **RUNTIME,
    "torch": "PyTorch FP32, batch 1",
    "torch-batched": "PyTorch FP32",
    "torch-bf16": "PyTorch BF16",
    "torch-compile": "PyTorch FP32, torch.compile",
    "torch-compile-bf16": "PyTorch BF16, torch.compile",
    "diffusion-classifier": "diffusion classifier, PyTorch FP32",
    "naive": "research loop, PyTorch FP32",
}
REFERENCE = "torch-batched"


def build(name: str, work: Work) -> Contender:
    """Set a contender up; what it needs is imported here, so that it counts for it alone."""
    if name in RUNTIME:
        from dsd_trt.export.benchmark.runtime import runtime

        mode: Mode = "matrix" if is_matrix(name) else "pair"
        return runtime(work, name.removesuffix(_MATRIX), mode)
    from dsd_trt.export.benchmark.pytorch import PyTorch

    whole: dict[str, Callable[[], Contender]] = {
        "naive": lambda: PyTorch(work, batched=False).naive(),
        "diffusion-classifier": lambda: PyTorch(work).diffusion_classifier(),
        "torch": lambda: PyTorch(work, batched=False).contender(),
    }
    ours = partial(PyTorch, work, bf16="bf16" in name, compiled="compile" in name)
    return whole.get(name, lambda: ours().contender())()


def is_matrix(name: str) -> bool:
    """Whether a contender scores in matrix mode."""
    return name.endswith(_MATRIX)


def measure(name: str, work: Work) -> Measured:
    """Let a contender score; a first round warms up and does not count."""
    contender = build(name, work)
    scores = _round(contender)[2]
    rounds = [_round(contender) for _ in range(work.rounds)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Measured(
        tuple(encode for encode, _, _ in rounds),
        tuple(score for _, score, _ in rounds),
        contender.passes,
        contender.macs,
        contender.precision,
        peak / (2**20 if sys.platform == "darwin" else 2**10),  # bytes there, else KiB
        tuple(tuple(float(value) for value in row) for row in scores),
        contender.refused,
    )


def _round(contender: Contender) -> tuple[float, float, Floats]:
    start = time.perf_counter()
    if contender.encode is not None:
        contender.encode()
    encoded = time.perf_counter()
    scores = contender.score()
    return encoded - start, time.perf_counter() - encoded, scores
