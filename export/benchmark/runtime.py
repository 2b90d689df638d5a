"""Our runtime as a contender."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt import Scorer
from dsd_trt.engine import BF16
from dsd_trt.export.benchmark.work import MEMORY_MB, Contender, Floats, Work
from dsd_trt.manifest import Mode
from dsd_trt.pipeline import EncodedTexts, Pipeline


def runtime(work: Work, engine: str, mode: Mode) -> Contender:
    """Score on an engine, in a mode."""
    scorer = Scorer(work.bundle, engine, MEMORY_MB, mode)
    runs = _Runs(scorer._pipeline, work, mode)
    pairs = work.pictures * work.texts * len(work.levels)
    walks = work.pictures * len(work.levels)
    if mode == "pair":
        passes, macs = pairs, float(pairs * work.macs("pair_scorer"))
    else:
        # A walk and matches with all texts: not one kind of pass, whose arithmetic could be told.
        passes, macs = walks, 0.0
    return Contender(runs.encode, runs.score, passes, macs, "bf16" if engine == BF16 else "fp32")


@dataclass
class _Runs:
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
            return self.pipeline.score_matrix(self.latent, self.texts, self.work.levels)
        shape = (self.work.pictures, self.work.texts)
        image, text = (places.ravel() for places in np.indices(shape))
        scores = self.pipeline.score(self.latent, self.texts, image, text, self.work.levels)
        return scores.reshape(shape)
