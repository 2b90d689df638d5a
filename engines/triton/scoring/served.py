"""A bundle whose graphs the repository's other models serve, and the requests' images and texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from dsd_trt.pipeline import EncodedTexts, Pipeline
from dsd_trt.text_cache import TextCache
from dsd_trt.tokenizer import Tokenizer

Array = NDArray[Any]


class Served:
    """The bundle of a model that clients call. One thread uses it at a time.

    Args:
        folder: version folder of the model.
        args: arguments of the model's `initialize`.

    Attributes:
        settings: parameters of the model's configuration.
        manifest: manifest of the bundle.
        pipeline: pipeline whose graphs are the repository's other models.
        metrics: counters of the model.
        has_matrix: whether the repository serves the matrix scorer to this model.
        levels: indices of all noise levels, int32 (levels,).
    """

    def __init__(self, folder: Path, args: Mapping[str, str]) -> None:
        self._name = args["model_name"]
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {key: int(value["string_value"]) for key, value in parameters.items()}
        self.settings = settings
        manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text("utf-8"))
        # An adapter input is fed by the model that serves the graph, not by this one.
        manifest = replace(manifest, adapter=None)
        self.manifest: Manifest = manifest
        self.levels = np.arange(len(manifest.method.noise_levels.fractions), dtype=np.int32)
        # Only with a matrix scorer does the configuration have these two parameters.
        block = settings.get("matrix_walks", 0), settings.get("matrix_texts", 0)
        self.has_matrix: bool = all(block)
        modes: frozenset[Mode] = frozenset(("pair", "matrix") if self.has_matrix else ("pair",))
        size = settings["max_batch_size"]
        sizes = BatchSizes(size, size, size, block if self.has_matrix else (1, 1))
        server = Triton("triton", "Triton", extra="triton", sizes=sizes, modes=modes)
        check = bool(settings["self_check"])
        self.pipeline: Pipeline = Pipeline(Bundle(folder, manifest), server, 0, self_check=check)
        spec = manifest.tokenizer
        self._texts = Texts(
            self.pipeline.encode_tokens,
            Tokenizer(folder / spec.file, spec, manifest.method.token_mask),
            TextCache(settings["text_cache_mb"]),
            settings["max_text_characters"],
        )
        self.metrics: Metrics = Metrics(self._name, args["model_version"])

    def warn_without_probability(self, mode: Mode) -> None:
        """Warn in the server's log if no probabilities were fitted to a mode's scores."""
        if why := why_no_probability(self.manifest, mode):
            pb_utils.Logger.log_warn(f"{self._name}: {why}")

    def require_within_limits(self, images: int, texts: int) -> None:
        """Refuse a request with too many images, texts or pairs.

        Raises:
            InputError: a limit is exceeded, or there are none.
        """
        for what, count in (("images", images), ("texts", texts), ("pairs", images * texts)):
            most = self.settings[f"max_{what}"]
            if not 0 < count <= most:
                raise InputError(
                    f"a request has 1 to {most} {what}, this one {count}; "
                    f"split it, or raise the limit in the configuration of {self._name}"
                )

    def latents(self, images: Sequence[bytes]) -> list[Array | str]:
        """Each image's latent, or the reason why there is none."""
        pixels = [self._pixels(image) for image in images]
        readable = [it for it in pixels if not isinstance(it, str)]
        encoded = iter(self.pipeline.encode_images(readable) if readable else ())
        return [it if isinstance(it, str) else _usable(next(encoded)) for it in pixels]

    def texts(self, texts: Sequence[bytes]) -> tuple[EncodedTexts | None, list[str]]:
        """The usable texts, encoded, and for each text why it cannot be used; see `Texts`."""
        return self._texts.encode(texts)

    def _pixels(self, image: bytes) -> NDArray[np.uint8] | str:
        """An image's pixels, (H, W, 3), or the reason why there are none."""
        to, settings = self.manifest.preprocessing, self.settings
        if len(image) > settings["max_image_bytes"]:
            return f"more than {described(settings['max_image_bytes'], 'bytes')}"
        try:
            return preprocess(image, to.resolution, to.resize, settings["max_image_pixels"])
        except ImageError as error:
            return str(error)


def _usable(latent: Array) -> Array | str:
    """The latent if all of it is finite, else the reason."""
    return latent if np.isfinite(latent).all() else "dsd_image_encoder gave NaN or infinity"
