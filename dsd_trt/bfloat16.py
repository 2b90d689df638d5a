"""The guard of BF16: faster than FP32, and used only where scores keep their order."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dsd_trt.agreement import spearman
from dsd_trt.bundle import Bundle
from dsd_trt.cache import recall, remember
from dsd_trt.engine import EngineDescription
from dsd_trt.errors import EngineError
from dsd_trt.manifest import Mode
from dsd_trt.pipeline import Pipeline
from dsd_trt.plan import graph_hash

MIN_SPEARMAN = 0.9999

logger = logging.getLogger(__name__)

_LARGE_TEXT_WIDTH = 512  # Stable Diffusion's are 768 and more, and its U-Net's passes take seconds
_WORDS = (
    ("a photo of", "a drawing of", "two", "a small", "an old", "no"),
    ("red", "blue", "wooden", "shiny", "green", "white"),
    ("dog", "circle", "car", "square", "house", "star", "tree", "man with an umbrella"),
    ("on a table", "left of a cat", "in the rain", "", "above the sea", "at night"),
)


def guarded(
    bundle: Bundle, mode: Mode, bf16: Pipeline, memory_budget_mb: float
) -> EngineDescription:
    """Compare BF16 with FP32 on this machine, once, and say how well they agree.

    Args:
        bundle: what is scored with.
        mode: whose scorer.
        bf16: compiled.
        memory_budget_mb: as for `Pipeline`.

    Returns:
        What the engine is, with the rank correlation (Spearman) of its scores to FP32's.

    Raises:
        EngineError: it is below `MIN_SPEARMAN`.
    """
    description = bf16.compile(mode)
    key = f"{graph_hash(bundle.manifest, f'{mode}_scorer')} {description}"
    if (agreement := recall("bf16", key)) is None:
        logger.warning(
            "comparing BF16 with FP32, once on this machine: minutes for Stable Diffusion"
        )
        agreement = _compare(bundle, mode, bf16, memory_budget_mb)
        remember("bf16", key, agreement)
    if not agreement >= MIN_SPEARMAN:
        raise EngineError(
            f"in BF16 this bundle's scores keep their order to {agreement:.5f} only (Spearman "
            f"against FP32, needed is {MIN_SPEARMAN}). Score in FP32: --engine openvino"
        )
    return EngineDescription(
        description.engine,
        description.device,
        f"{description.precision} (Spearman against fp32: {agreement:.6f})",
    )


def _compare(bundle: Bundle, mode: Mode, bf16: Pipeline, memory_budget_mb: float) -> float:
    full = Pipeline(bundle, "openvino", memory_budget_mb)
    large = bundle.manifest.text_width > _LARGE_TEXT_WIDTH
    side = 8 if large else 16
    rng = np.random.default_rng(0)
    pixels = list(_pictures(rng, side, bundle.manifest.preprocessing.resolution))
    texts = [" ".join(rng.choice(words) for words in _WORDS) for _ in range(side)]
    count = len(bundle.manifest.method.noise_levels.fractions)
    levels = np.arange(1 if large else count, dtype=np.int32)
    image, text = (places.ravel() for places in np.indices((side, side)))
    scores = []
    for pipeline in (full, bf16):
        latent, encoded = pipeline.encode_images(pixels), pipeline.encode_texts(texts)
        if mode == "matrix":
            scores.append(pipeline.score_matrix(latent, encoded, levels).ravel())
        else:
            scores.append(pipeline.score(latent, encoded, image, text, levels))
    return spearman(*scores)


def _pictures(rng: np.random.Generator, count: int, side: int) -> Iterator[NDArray[np.uint8]]:
    """Coloured blocks of some coarseness, noise upon them: (side, side, 3) each."""
    for _ in range(count):
        cells = int(rng.integers(2, 9))
        coarse = rng.integers(0, 256, (cells, cells, 3))
        repeat = -(-side // cells)
        blocks = np.kron(coarse, np.ones((repeat, repeat, 1)))[:side, :side]
        yield np.clip(blocks + rng.normal(0, 8, blocks.shape), 0, 255).astype(np.uint8)
