"""Our lean runtime as a contender."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bfloat16 import guarded
from dsd_trt.bundle.manifest import Mode
from dsd_trt.engine.choice import named_backend
from dsd_trt.errors import DisagreementError
from dsd_trt.export.benchmark.work import MEMORY_MB, Contender, Floats, Work
from dsd_trt.mode import choose_mode
from dsd_trt.pipeline import EncodedTexts, Pipeline


def runtime(work: Work, engine: str, mode: Mode) -> Contender:
    """Set up the runtime on one engine in one mode, even if `score` would refuse the engine.

    Args:
        work: bundle and pairs to score.
        engine: name of the engine, such as "openvino-bf16".
        mode: mode to score in, "pair" or "matrix".
    """
    backend = named_backend(engine)
    pipeline = Pipeline(work.bundle, backend, MEMORY_MB)
    mode = choose_mode(work.bundle.manifest, mode, backend)
    refused = ""
    if backend.keeps_order_of:
        try:
            guarded(work.bundle, mode, pipeline, MEMORY_MB)
        except DisagreementError as error:
            refused = str(error)
    description = pipeline.compile(mode)
    runs = _Runs(pipeline, work, mode)
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
    return Contender(runs.encode, runs.score, passes, macs, precision, refused)


def _sizes(count: int, most: int) -> list[int]:
    """Sizes of the batches that `count` items are split into, at most `most` each."""
    return [min(most, count - start) for start in range(0, count, most)]


@dataclass
class _Runs:
    """The timed steps, with encoded images and texts kept between them."""

    pipeline: Pipeline
    work: Work
    mode: Mode
    latent: NDArray[Any] | None = None
    texts: EncodedTexts | None = None

    def encode(self) -> None:
        self.latent = self.pipeline.encode_images(list(self.work.probe.pixels))
        self.texts = self.pipeline.encode_texts(self.work.probe.texts)

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
