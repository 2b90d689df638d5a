"""`dsd_score`: the matrices of scores and probabilities of encoded images and texts.

It runs the package's own pipeline on engines that send requests to the repository's other models.
An instance answers one request at a time. While it waits for a model, other instances send theirs,
and Triton batches them. Threads of one instance could do the same, but Triton 2.51 crashes when
they send requests at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before an installed dsd_trt, which may be another version.
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from dsd_trt.batching import BatchSizes
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import MANIFEST_NAME, Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.probability import why_no_probability
from dsd_trt.engines.triton.scoring.backend import Triton
from dsd_trt.engines.triton.scoring.metrics import Metrics
from dsd_trt.engines.triton.scoring.texts import Texts
from dsd_trt.errors import ImageError, InputError
from dsd_trt.image.preprocess import preprocess
from dsd_trt.limits import described
from dsd_trt.match_probability import match_probability
from dsd_trt.pipeline import EncodedTexts, Pipeline
from dsd_trt.text_cache import TextCache
from dsd_trt.tokenizer import Tokenizer

HERE = Path(__file__).parent

UNSCORED = np.finfo(np.float32).min
"""Placeholder for a missing score or probability, because JSON has no NaN.

All probabilities are missing if none were fitted to the bundle's scores. It is below every possible
score, and any average that includes it is visibly wrong.
"""

Array = NDArray[Any]


class TritonPythonModel:
    """The interface that Triton's python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle's manifest and this model's parameters."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {key: int(value["string_value"]) for key, value in parameters.items()}
        self._settings = settings
        manifest = Manifest.from_json((HERE / MANIFEST_NAME).read_text("utf-8"))
        # An adapter input is fed by the model that serves the graph, not by this one.
        self._manifest = manifest = replace(manifest, adapter=None)
        check = bool(settings["self_check"])
        # Only a repository for matrix mode has these two parameters.
        block = settings.get("matrix_walks", 0), settings.get("matrix_texts", 0)
        self._mode: Mode = "matrix" if all(block) else "pair"
        size = settings["max_batch_size"]
        sizes = BatchSizes(size, size, size, block if self._mode == "matrix" else (1, 1))
        if why := why_no_probability(manifest, self._mode):
            pb_utils.Logger.log_warn(f"{args['model_name']}: {why}")
        server = Triton("triton", "Triton", extra="triton", sizes=sizes)
        self._pipeline = Pipeline(Bundle(HERE, manifest), server, 0, self_check=check)
        spec = manifest.tokenizer
        self._texts = Texts(
            self._pipeline.encode_tokens,
            Tokenizer(HERE / spec.file, spec, manifest.method.token_mask),
            TextCache(settings["text_cache_mb"]),
            settings["max_text_characters"],
        )
        self._metrics = Metrics(args["model_name"], args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; a failed one does not affect the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        images, texts = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy().tolist()
            for name in ("images", "texts")
        )
        try:
            return pb_utils.InferenceResponse(self._score(images, texts))
        except InputError as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # otherwise the backend fails all requests of this call
            return _refusal(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)

    def _score(self, images: Sequence[bytes], texts: Sequence[bytes]) -> list[Any]:
        """The answer's tensors; an unusable image or text gives `UNSCORED` and a reason."""
        self._check(len(images), len(texts))
        # Not in `initialize`: the python backend can call other models only during a request.
        self._pipeline.compile(self._mode)
        latents = self._latents(images)
        encoded, text_errors = self._texts.encode(texts)
        image_errors = [it if isinstance(it, str) else "" for it in latents]
        rows = [i for i, error in enumerate(image_errors) if not error]
        columns = [j for j, error in enumerate(text_errors) if not error]
        scores = np.full((len(images), len(texts)), np.nan, np.float32)
        if rows and encoded is not None:
            usable = np.stack([it for it in latents if not isinstance(it, str)])
            scores[np.ix_(rows, columns)] = self._block(usable, encoded)
        self._metrics.count(int(np.isfinite(scores).sum()), image_errors, text_errors)
        for i in rows:
            if lost := [j for j in columns if not np.isfinite(scores[i, j])]:
                image_errors[i] = f"dsd_{self._mode}_scorer gave NaN or infinity with texts {lost}"
        calibration = self._manifest.calibration_of(self._mode)
        return [
            pb_utils.Tensor("probabilities", _unscored(match_probability(scores, calibration))),
            pb_utils.Tensor("scores", _unscored(scores)),
            pb_utils.Tensor("image_errors", _strings(image_errors)),
            pb_utils.Tensor("text_errors", _strings(text_errors)),
        ]

    def _latents(self, images: Sequence[bytes]) -> list[Array | str]:
        """Each image's latent, or the reason why there is none."""
        pixels = [self._pixels(image) for image in images]
        readable = [it for it in pixels if not isinstance(it, str)]
        encoded = iter(self._pipeline.encode_images(readable) if readable else ())
        return [it if isinstance(it, str) else _usable(next(encoded)) for it in pixels]

    def _block(self, latent: Array, texts: EncodedTexts) -> NDArray[np.float32]:
        """Score usable images with usable texts: (images, C, h, w) -> (images, texts)."""
        levels = np.arange(len(self._manifest.method.noise_levels.fractions), dtype=np.int32)
        if self._mode == "matrix":
            return self._pipeline.score_matrix(latent, texts, levels)
        image_of, text_of = np.indices((len(latent), len(texts.mask))).reshape(2, -1)  # (pairs,)
        scores = self._pipeline.score(latent, texts, image_of, text_of, levels)
        return scores.reshape(len(latent), len(texts.mask))

    def _check(self, images: int, texts: int) -> None:
        for what, count in (("images", images), ("texts", texts), ("pairs", images * texts)):
            most = self._settings[f"max_{what}"]
            if not 0 < count <= most:
                raise InputError(
                    f"a request has 1 to {most} {what}, this one {count}; "
                    "split it, or raise the limit in the configuration of dsd_score"
                )

    def _pixels(self, image: bytes) -> NDArray[np.uint8] | str:
        """An image's pixels, (H, W, 3), or the reason why there are none."""
        to, settings = self._manifest.preprocessing, self._settings
        if len(image) > settings["max_image_bytes"]:
            return f"more than {described(settings['max_image_bytes'], 'bytes')}"
        try:
            return preprocess(image, to.resolution, to.resize, settings["max_image_pixels"])
        except ImageError as error:
            return str(error)


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _usable(latent: Array) -> Array | str:
    """The latent if all of it is finite, else the reason."""
    return latent if np.isfinite(latent).all() else "dsd_image_encoder gave NaN or infinity"


def _unscored(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.isfinite(values), values, UNSCORED)


def _strings(values: Sequence[str]) -> Any:
    return np.array([value.encode() for value in values], np.object_)
