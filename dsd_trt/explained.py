"""Explains one image with its texts: decodes and encodes it, and pools its attention maps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.folder import Bundle, with_maps
from dsd_trt.bundle.manifest import Calibration
from dsd_trt.bundle.method import Mode
from dsd_trt.errors import EngineError, ImageError, InputError
from dsd_trt.explanation import Explanation, explain, finest, require_choice, with_heat
from dsd_trt.job_scorer import JobScorer
from dsd_trt.jobs import Scorable, decode_image, name_of
from dsd_trt.match_probability import match_probability
from dsd_trt.pipeline import EncodedTexts, Pipeline


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
) -> list[Explanation]:
    """Explanations of an image's texts.

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
    method, maps = bundle.manifest.method, with_maps(bundle).manifest.maps
    assert maps is not None
    places = [(rows, columns) for rows, columns in maps.places]
    known = method.noise_levels.fractions
    levels = tuple(known[it] for it in level)
    require_choice(method, levels, **chosen)
    name = name_of(image, 0)
    decoded = decode_image(image, name, bundle.manifest)
    if isinstance(decoded, ImageError):
        raise ImageError(f"{name}: {decoded}")
    pixels: NDArray[np.uint8] | None = None
    latent = decoded
    if decoded.dtype == np.uint8:
        pixels = decoded
        latent = pipeline.encode_images([decoded])[0]
    if not np.isfinite(latent).all():
        raise ImageError(f"{name}: {pipeline.complaint('image_encoder', 'a latent')}")
    content = hashlib.sha256(np.ascontiguousarray(decoded)).hexdigest()
    unique = list(dict.fromkeys(texts))
    encoded, failures = jobs.encode_texts(unique)
    if failures:
        raise EngineError(str(failures[0]))
    found = {}
    for row, text in enumerate(unique):
        of_text = EncodedTexts(encoded.states[row : row + 1], encoded.mask[row : row + 1])
        seen = [pipeline.attention_maps(latent, of_text, int(it)) for it in level]
        words = pipeline.words(text)
        score, words, layers, tokens = explain(seen, words, encoded.mask[row], places, method)
        likely = match_probability(np.array([score], np.float32), calibration)
        explanation = Explanation(
            *(name, text, score, float(likely[0]), words, levels, finest(places)),
            *(layers, tokens, method, pixels, content, bundle.manifest.digest),
        )
        found[text] = with_heat(explanation, **chosen)
    return [found[text] for text in texts]
