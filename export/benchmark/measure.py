"""Measure one contender in its own process, so that its peak memory is its own."""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dsd_trt.bundle.method import Mode
from dsd_trt.export.benchmark.contenders import MATRIX, RUNTIME, is_matrix
from dsd_trt.export.benchmark.memory import PeakMemory
from dsd_trt.export.benchmark.work import Contender, Floats, Work, encoded_requests


@dataclass(frozen=True)
class Measured:
    """Measurements of one contender.

    Attributes:
        encode_seconds: seconds for encoding images and texts, per round.
        score_seconds: seconds for scoring all pairs, per round.
        passes: number of forward passes of the U-Net per round; of walks in matrix mode.
        macs: number of multiply-accumulates (MACs) of those passes per round.
        precision: precision of matrix products, "fp32" or "bf16".
        peak_mib: peak memory of the process, in MiB.
        scores: scores of the pairs, (images, texts).
        refused: reason why `score` would refuse this contender; empty if it would not.
        request_seconds: seconds of each request, of one image and one text, one after another.
        memory: peaks of private and mapped memory, requests included; None if they were not
            watched, or the system does not report them.
    """

    encode_seconds: tuple[float, ...]
    score_seconds: tuple[float, ...]
    passes: int
    macs: float
    precision: str
    peak_mib: float
    scores: tuple[tuple[float, ...], ...]
    refused: str = ""
    request_seconds: tuple[float, ...] = ()
    memory: PeakMemory | None = None


def build(name: str, work: Work) -> Contender:
    """Set a contender up; imports happen here, so that they count for this contender alone."""
    if name in RUNTIME:
        from dsd_trt.export.benchmark.runtime import runtime

        mode: Mode = "matrix" if is_matrix(name) else "pair"
        return runtime(work, name.removesuffix(MATRIX), mode)
    from dsd_trt.export.benchmark.pytorch import PyTorch

    whole: dict[str, Callable[[], Contender]] = {
        "naive": lambda: PyTorch(work, batched=False).naive(),
        "diffusion-classifier": lambda: PyTorch(work).diffusion_classifier(),
        "torch": lambda: PyTorch(work, batched=False).contender(),
    }
    ours = partial(PyTorch, work, bf16="bf16" in name, compiled="compile" in name)
    return whole.get(name, lambda: ours().contender())()


def measure(name: str, work: Work) -> Measured:
    """Time a contender for `work.rounds` rounds and `work.requests` requests.

    A round and a request of each kind before that do not count.
    """
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
        peak / (2**20 if sys.platform == "darwin" else 2**10),  # bytes on macOS, KiB elsewhere
        tuple(tuple(float(value) for value in row) for row in scores),
        contender.refused,
        _requests(contender, work),  # after the peak memory, which is that of the rounds
    )


def _requests(contender: Contender, work: Work) -> tuple[float, ...]:
    """Seconds of each request, after one that does not count."""
    requests = encoded_requests(work)
    contender.request(*requests[0])
    seconds = []
    for image, text in itertools.islice(itertools.cycle(requests), work.requests):
        start = time.perf_counter()
        contender.request(image, text)
        seconds.append(time.perf_counter() - start)
    return tuple(seconds)


def _round(contender: Contender) -> tuple[float, float, Floats]:
    start = time.perf_counter()
    if contender.encode is not None:
        contender.encode()
    encoded = time.perf_counter()
    scores = contender.score()
    return encoded - start, time.perf_counter() - encoded, scores
