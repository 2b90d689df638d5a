"""`dsd_score`: the matrices of scores and probabilities of encoded images and texts.

It runs the package's own pipeline on engines that send requests to the repository's other models.
An instance answers one request at a time. While it waits for a model, other instances send theirs,
and Triton batches them. Threads of one instance could do the same, but Triton 2.51 crashes when
they send requests at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before an installed dsd_trt, which may be another version.
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.method import Mode
from dsd_trt.engines.triton.scoring.answers import answered, numbers, strings, strings_of
from dsd_trt.engines.triton.scoring.served import Served
from dsd_trt.match_probability import match_probability
from dsd_trt.pipeline import EncodedTexts

Array = NDArray[Any]


class TritonPythonModel:
    """The interface that Triton's python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle's manifest and this model's parameters."""
        self._served = Served(Path(__file__).parent, args)
        # Only a repository for matrix mode serves the matrix scorer to this model.
        self._mode: Mode = "matrix" if self._served.has_matrix else "pair"
        self._served.warn_without_probability(self._mode)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; a failed one does not affect the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        images, texts = (strings_of(request, name) for name in ("images", "texts"))
        return answered(lambda: self._score(images, texts))

    def _score(self, images: Sequence[bytes], texts: Sequence[bytes]) -> list[Any]:
        """The answer's tensors; an unusable image or text has no score and a reason."""
        served = self._served
        served.require_within_limits(len(images), len(texts))
        # Not in `initialize`: the python backend can call other models only during a request.
        served.pipeline.compile(self._mode)
        latents = served.latents(images)
        encoded, text_errors = served.texts(texts)
        image_errors = [it if isinstance(it, str) else "" for it in latents]
        rows = [i for i, error in enumerate(image_errors) if not error]
        columns = [j for j, error in enumerate(text_errors) if not error]
        scores = np.full((len(images), len(texts)), np.nan, np.float32)
        if rows and encoded is not None:
            usable = np.stack([it for it in latents if not isinstance(it, str)])
            scores[np.ix_(rows, columns)] = self._block(usable, encoded)
        served.metrics.count(int(np.isfinite(scores).sum()), image_errors, text_errors)
        for i in rows:
            if lost := [j for j in columns if not np.isfinite(scores[i, j])]:
                image_errors[i] = f"dsd_{self._mode}_scorer gave NaN or infinity with texts {lost}"
        calibration = served.manifest.calibration_of(self._mode)
        return [
            numbers("probabilities", match_probability(scores, calibration)),
            numbers("scores", scores),
            strings("image_errors", image_errors),
            strings("text_errors", text_errors),
        ]

    def _block(self, latent: Array, texts: EncodedTexts) -> NDArray[np.float32]:
        """Score usable images with usable texts: (images, C, h, w) -> (images, texts)."""
        pipeline, levels = self._served.pipeline, self._served.levels
        if self._mode == "matrix":
            return pipeline.score_matrix(latent, texts, levels)
        image_of, text_of = np.indices((len(latent), len(texts.mask))).reshape(2, -1)  # (pairs,)
        scores = pipeline.score(latent, texts, image_of, text_of, levels)
        return scores.reshape(len(latent), len(texts.mask))
