"""Our lean runtime as a contender."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bfloat16 import guarded
from dsd_trt.bundle.method import Mode
from dsd_trt.engine.choice import named_backend
from dsd_trt.errors import DisagreementError, ImageError
from dsd_trt.export.benchmark.work import Contender, Floats, Work
from dsd_trt.job_scorer import JobScorer
from dsd_trt.jobs import Given, Job, Tally
from dsd_trt.mode import choose_mode
from dsd_trt.pipeline import EncodedTexts, Pipeline
from dsd_trt.text_cache import TextCache


def runtime(work: Work, engine: str, mode: Mode) -> Contender:
    """Set up the runtime on one engine in one mode, even if `score` would refuse the engine.

    Args:
        work: bundle and pairs to score.
        engine: name of the engine, such as "openvino-bf16".
        mode: mode to score in, "pair" or "matrix".
    """
    backend = replace(named_backend(engine), cache_compiled=work.cache_compiled)
    pipeline = Pipeline(work.bundle, backend, None)
    mode = choose_mode(work.bundle.manifest, mode, backend)
    refused = ""
    if backend.keeps_order_of:
        try:
            guarded(work.bundle, mode, pipeline, None)
        except DisagreementError as error:
            refused = str(error)
    description = pipeline.compile(mode)
    # Without texts of earlier calls: those of a service may be new each time.
    jobs = JobScorer(pipeline, work.bundle.manifest, mode, TextCache(0))
    runs = _Runs(pipeline, work, mode, jobs)
    walks = work.pictures * len(work.levels)
    if mode == "pair":
        passes = walks * work.texts
        macs = passes * work.macs("pair_scorer")
    else:
        passes = walks
        most = pipeline.batch.matrix
        blocks = Counter(product(*map(_sizes, (walks, work.texts), most)))
        macs = sum(
            times * work.macs("matrix_scorer", I=rows, T=columns)
            for (rows, columns), times in blocks.items()
        )
    precision = "bf16" if "bf16" in description.precision else "fp32"
    return Contender(runs.encode, runs.score, passes, macs, precision, runs.request, refused)


def _sizes(count: int, most: int) -> list[int]:
    """Sizes of the batches that `count` items are split into, at most `most` each."""
    return [min(most, count - start) for start in range(0, count, most)]


@dataclass
class _Runs:
    """The timed steps, with encoded images and texts kept between them."""

    pipeline: Pipeline
    work: Work
    mode: Mode
    jobs: JobScorer
    latent: NDArray[Any] | None = None
    texts: EncodedTexts | None = None

    def encode(self) -> None:
        self.latent = self.pipeline.encode_images(list(self.work.probe.pixels))
        self.texts = self.pipeline.encode_texts(self.work.probe.texts)

    def request(self, image: bytes, text: str) -> float:
        """Score one image and one text as `Scorer.score` does."""
        texts, _ = self.jobs.encode_texts([text])
        levels = self.work.levels
        given = Given(image, Job("request", np.zeros(1, np.intp)))
        ((_, scored),) = self.jobs.run([given], texts, levels, Tally(None, 1, len(levels)))
        if isinstance(scored.result, ImageError):
            raise scored.result
        return float(scored.result.scores[0])

    def score(self) -> Floats:
        assert self.latent is not None
        assert self.texts is not None
        if self.mode == "matrix":
            matrix = self.pipeline.score_matrix(self.latent, self.texts, self.work.levels)
            self.pipeline.require_finite(matrix, "matrix")
            return matrix
        shape = (self.work.pictures, self.work.texts)
        image, text = (places.ravel() for places in np.indices(shape))
        scores = self.pipeline.score(self.latent, self.texts, image, text, self.work.levels)
        self.pipeline.require_finite(scores)
        return scores.reshape(shape)
