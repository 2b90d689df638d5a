"""The BF16 guard: BF16 is faster than FP32, and used only if the rank correlation is high.

It also measures the largest difference of a score, by which match probabilities are kept or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dsd_trt.agreement import spearman
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.probability import Rounding
from dsd_trt.cache import recall, remember
from dsd_trt.engine import EngineDescription, find_backend
from dsd_trt.errors import DisagreementError, EngineError
from dsd_trt.log import get_logger
from dsd_trt.pipeline import Pipeline

MIN_SPEARMAN = 0.9999

logger = get_logger(__name__)

_LARGE_TEXT_WIDTH = 512  # Stable Diffusion has 768 and more, and its U-Net takes seconds per pass
_COLOURS = ("red", "blue", "green", "yellow", "white", "orange", "purple", "black")
_SHAPES = ("circle", "square", "triangle")
_GROUNDS = ("grey", "beige", "navy", "pink")


@dataclass(frozen=True)
class Agreement:
    """Agreement of BF16's scores with FP32's.

    Attributes:
        spearman: rank correlation of both, in [-1, 1].
        difference: largest absolute difference of two scores.
    """

    spearman: float
    difference: float


def guarded(
    bundle: Bundle, mode: Mode, bf16: Pipeline, memory_budget_mb: float | None
) -> tuple[EngineDescription, Rounding]:
    """Compile for BF16, if its scores have a high rank correlation with FP32's.

    Args:
        bundle: the verified bundle to score with.
        mode: mode whose scorer is compiled.
        bf16: pipeline that computes in BF16.
        memory_budget_mb: memory for activations, in MiB, as for `Pipeline`.

    Returns:
        Engine description, with the rank correlation (Spearman) to FP32, and what rounding does to
        scores.

    Raises:
        DisagreementError: the rank correlation is too low, as for `require_agreement`.
    """
    agreement = require_agreement(bundle, mode, bf16, memory_budget_mb)
    description = bf16.compile(mode)
    assert bf16.backend.keeps_order_of is not None
    told = EngineDescription(
        description.engine,
        description.device,
        f"{description.precision} (Spearman against fp32: {agreement.spearman:.6f})",
    )
    return told, Rounding("BF16", agreement.difference, bf16.backend.keeps_order_of)


def require_agreement(
    bundle: Bundle, mode: Mode, bf16: Pipeline, memory_budget_mb: float | None
) -> Agreement:
    """Compare BF16 with FP32 once per machine, and refuse BF16 if they disagree.

    Args:
        bundle: the verified bundle to compare on.
        mode: mode whose scorer is compared.
        bf16: pipeline that computes in BF16. If the comparison is remembered, only its image
            encoder is compiled.
        memory_budget_mb: memory for activations, in MiB, as for `Pipeline`.

    Returns:
        Agreement with FP32's scores.

    Raises:
        DisagreementError: the rank correlation is below `MIN_SPEARMAN`.
    """
    # The whole bundle: an adapter input or another token mask changes scores, too.
    bundle_hash = bundle.manifest.digest
    backend = bf16.backend
    key = f"{bundle_hash} {mode} {backend.name} against {backend.keeps_order_of}: "
    key += str(bf16.image_encoder)
    spearman, difference = recall("bf16", key), recall("bf16-difference", key)
    if spearman is None or difference is None:
        logger.warning(
            "comparing BF16 with FP32, once on this machine: minutes for Stable Diffusion"
        )
        agreement = _compare(bundle, mode, bf16, memory_budget_mb)
        remember("bf16", key, agreement.spearman)
        remember("bf16-difference", key, agreement.difference)
    else:
        agreement = Agreement(spearman, difference)
    if not agreement.spearman >= MIN_SPEARMAN:
        raise DisagreementError(
            f"in BF16 this bundle's scores keep their order to {agreement.spearman:.5f} only "
            f"(Spearman against FP32, needed is {MIN_SPEARMAN}). Score in FP32: "
            f"--engine {bf16.backend.keeps_order_of}"
        )
    return agreement


def _compare(
    bundle: Bundle, mode: Mode, bf16: Pipeline, memory_budget_mb: float | None
) -> Agreement:
    large = bundle.manifest.text_width > _LARGE_TEXT_WIDTH
    side = 8 if large else 16
    rng = np.random.default_rng(0)
    resolution = bundle.manifest.preprocessing.resolution
    pixels, texts = zip(*(_scene(rng, resolution) for _ in range(side)), strict=True)
    count = len(bundle.manifest.method.noise_levels.fractions)
    levels = np.arange(1 if large else count, dtype=np.int32)
    image, text = (places.ravel() for places in np.indices((side, side)))

    def scores(pipeline: Pipeline) -> NDArray[np.float32]:
        latent, encoded = pipeline.encode_images(pixels), pipeline.encode_texts(texts)
        if mode == "matrix":
            return pipeline.score_matrix(latent, encoded, levels).ravel()
        return pipeline.score(latent, encoded, image, text, levels)

    assert bf16.backend.keeps_order_of is not None
    reference = find_backend(bf16.backend.keeps_order_of).with_threads(bf16.backend.threads)
    if reference.keeps_order_of is not None:
        raise EngineError(
            f"{bf16.backend.name} keeps the order of {reference.name}, whose own order has to be "
            f"checked: name the reference, {reference.keeps_order_of}"
        )
    fp32 = Pipeline(bundle, reference, memory_budget_mb, self_check=bf16.self_check or False)
    expected = scores(fp32)
    fp32.close()  # before the rest of BF16 is compiled: 10 GB each for Stable Diffusion
    found = scores(bf16)
    return Agreement(spearman(expected, found), float(np.abs(found - expected).max()))


def _scene(rng: np.random.Generator, side: int) -> tuple[NDArray[np.uint8], str]:
    """A drawn image, (side, side, 3), and its caption: their scores scatter as in real use.

    Unrelated images and texts all have nearly the same score. Their ranking would measure rounding,
    not scoring.
    """
    picture = Image.new("RGB", (side, side), str(rng.choice(_GROUNDS)))
    names = []
    for left in (0, side / 2):
        colour, shape = str(rng.choice(_COLOURS)), str(rng.choice(_SHAPES))
        names.append(f"a {colour} {shape}")
        radius = side * rng.uniform(0.1, 0.24)
        x, y = left + side / 4, side * rng.uniform(0.3, 0.7)
        box = (x - radius, y - radius, x + radius, y + radius)
        draw = ImageDraw.Draw(picture)
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "square":
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon((box[0], box[3], x, box[1], box[2], box[3]), fill=colour)
    return np.asarray(picture), f"{names[0]} to the left of {names[1]}"
