"""Explains one image with its texts: decodes and encodes it, and pools its attention maps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.folder import Bundle, with_maps
from dsd_trt.bundle.manifest import Calibration
from dsd_trt.bundle.method import Mode
from dsd_trt.errors import ImageError, InputError
from dsd_trt.explanation import Explanation, explain, finest, require_choice, with_heat
from dsd_trt.failure import Failure
from dsd_trt.job_scorer import JobScorer
from dsd_trt.jobs import Scorable, decode_image, name_of
from dsd_trt.match_probability import match_probability
from dsd_trt.pipeline import EncodedTexts, Pipeline


@dataclass(frozen=True)
class _Seen:
    """An image as the U-Net reads it, and what an explanation says of it."""

    name: str
    latent: NDArray[np.float32]
    pixels: NDArray[np.uint8] | None
    sha256: str


def explained(
    pipeline: Pipeline,
    jobs: JobScorer,
    bundle: Bundle,
    mode: Mode,
    image: Scorable,
    texts: Sequence[str],
    level: NDArray[np.int32],
    calibration: Calibration | None,
    chosen: Mapping[str, Any],
) -> Iterator[Explanation | Failure]:
    """Explanations of an image's texts, each computed when it is asked for.

    Args:
        pipeline: pipeline of the bundle's graphs.
        jobs: scorer of jobs, which keeps encoded texts.
        bundle: the bundle that scores.
        mode: mode of the scorer.
        image: image in any form.
        texts: texts to explain; equal ones are encoded once.
        level: indices of the noise levels to average over.
        calibration: (a, b) of the match probability; None if none were fitted.
        chosen: layer, head and level of the heat maps, as for `Explanation.heat`.

    Returns:
        An explanation of each text in order, or why it cannot be encoded.

    Raises:
        ImageError: the image cannot be decoded or encoded.
        InputError: a choice does not exist, the mode is "matrix", or the bundle has no maps graph.
        EngineError: the engine cannot compute, or opens no maps graph.
    """
    pipeline.require_usable()
    if mode == "matrix":
        raise InputError(
            "explanations are of pair mode's score, and this scorer is in matrix mode: open it "
            "with mode 'pair'"
        )
    method = with_maps(bundle).manifest.method
    levels = tuple(method.noise_levels.fractions[it] for it in level)
    require_choice(method, levels, **chosen)
    seen = _seen(pipeline, bundle, image)
    unique = list(dict.fromkeys(texts))
    encoded, failures = jobs.encode_texts(unique)
    lost = {it.text: it for it in failures}
    rows = {text: row for row, text in enumerate(unique)}

    def one(text: str) -> Explanation:
        row = slice(rows[text], rows[text] + 1)
        of_text = EncodedTexts(encoded.states[row], encoded.mask[row])
        it = _explanation(pipeline, bundle, seen, text, of_text, level, calibration)
        return with_heat(it, **chosen)

    return (lost[text] if text in lost else one(text) for text in texts)


def _seen(pipeline: Pipeline, bundle: Bundle, image: Scorable) -> _Seen:
    """Decode and encode an image.

    Raises:
        ImageError: it cannot be decoded, or its latent is not finite.
    """
    name = name_of(image, 0)
    decoded = decode_image(image, name, bundle.manifest)
    if isinstance(decoded, ImageError):
        raise ImageError(f"{name}: {decoded}")
    pixels = decoded if decoded.dtype == np.uint8 else None
    latent = decoded if pixels is None else pipeline.encode_images([pixels])[0]
    if not np.isfinite(latent).all():
        raise ImageError(f"{name}: {pipeline.complaint('image_encoder', 'a latent')}")
    sha256 = hashlib.sha256(decoded.tobytes()).hexdigest()
    return _Seen(name, latent, pixels, sha256)


def _explanation(
    pipeline: Pipeline,
    bundle: Bundle,
    seen: _Seen,
    text: str,
    encoded: EncodedTexts,
    level: NDArray[np.int32],
    calibration: Calibration | None,
) -> Explanation:
    """Run the maps graph at every level, and pool its maps; words are without heat yet."""
    manifest = bundle.manifest
    assert manifest.maps is not None
    method = manifest.method
    places = [(rows, columns) for rows, columns in manifest.maps.places]
    maps = [pipeline.attention_maps(seen.latent, encoded, int(it)) for it in level]
    score, words, layers, tokens = explain(
        maps, pipeline.words(text), encoded.mask[0], places, method
    )
    likely = float(match_probability(np.array([score], np.float32), calibration)[0])
    levels = tuple(method.noise_levels.fractions[it] for it in level)
    return Explanation(
        *(seen.name, text, score, likely, words, levels, finest(places)),
        *(layers, tokens, method, seen.pixels, seen.sha256, manifest.digest),
    )
