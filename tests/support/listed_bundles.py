"""The stand-in bundle with lists that were measured on pictures of one colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from bundles import FRACTIONS, WORDS, give_lists, make_bundle
from numpy.typing import NDArray

from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.lists import RULE, Lists, Measured
from dsd_trt.lists import gap_of, need_of

Scores = NDArray[np.float32]

TEXTS = [f"{a} {b}" for a in WORDS[4:] for b in WORDS[4:]]


def random_pictures(count: int, seed: int) -> list[Any]:
    """Pictures of one colour each, so that texts fit them differently."""
    colors = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), np.uint8)
    return list(np.tile(colors, (1, 8, 8, 1)))


def make_listed_bundle(folder: Path) -> Bundle:
    """A bundle whose matrix scores, as they are, make lists for up to three texts or images."""
    bundle = make_bundle(folder, matrix=True)
    return give_lists(bundle, measured_on(bundle, random_pictures(400, seed=1), TEXTS, 3))


def measured_on(bundle: Bundle, images: list[Any], texts: list[str], best: int) -> Lists:
    """Lists of a bundle, of some images and texts, without a slope."""
    pair, matrix = (Scorer.load(bundle.folder, "onnxruntime", mode=it) for it in ("pair", "matrix"))
    estimates = matrix.score(images, texts, FRACTIONS[:1]).scores
    first, full = (pair.score(images, texts, it).scores for it in (FRACTIONS[:1], None))
    of_texts = {str(best): _measured(estimates, first, full, best)}
    of_images = {str(best): _measured(estimates.T, first.T, full.T, best)}
    return Lists(0, len(texts), 0.0, of_texts, of_images, RULE)


def _measured(estimates: Scores, first: Scores, full: Scores, best: int) -> Measured:
    """Needs and gaps of all rows."""
    winners = np.argsort(-full, axis=1, kind="stable")[:, :best]
    rows = list(zip(estimates, first, winners, strict=True))
    needs = sorted(need_of(*row, best, 0.0, estimates.shape[1]) for row in rows)
    gaps = sorted((gap_of(scores, won, best) for _, scores, won in rows), reverse=True)
    return Measured(len(rows), tuple(it for it in needs if np.isfinite(it)), tuple(gaps))
