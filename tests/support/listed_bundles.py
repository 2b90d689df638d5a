"""The stand-in bundle with lists that were measured on pictures of one colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from bundles import FRACTIONS, WORDS, give_lists, make_bundle

from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.lists import RULE, Lists, Measured
from dsd_trt.lists import need_of

TEXTS = [f"{a} {b}" for a in WORDS[4:] for b in WORDS[4:]]


def random_pictures(count: int, seed: int) -> list[Any]:
    """Pictures of one colour each, so that texts fit them differently."""
    colors = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), np.uint8)
    return list(np.tile(colors, (1, 8, 8, 1)))


def make_listed_bundle(folder: Path) -> Bundle:
    """A bundle whose matrix scores, as they are, make lists for up to three texts or images."""
    bundle = make_bundle(folder, matrix=True)
    pair, matrix = (Scorer.load(bundle.folder, "onnxruntime", mode=it) for it in ("pair", "matrix"))
    images = random_pictures(400, seed=1)
    lists = Lists(
        0,
        len(TEXTS),
        0.0,
        {"3": _measure(pair, matrix, images, 3, "texts")},
        {"3": _measure(pair, matrix, images, 3, "images")},
        RULE,
    )
    return give_lists(bundle, lists)


def _measure(scorer: Scorer, by_matrix: Scorer, images: list[Any], best: int, of: str) -> Measured:
    """Needs of all lists of some images and all texts."""
    estimates = by_matrix.score(images, TEXTS, FRACTIONS[:1]).scores
    first = scorer.score(images, TEXTS, FRACTIONS[:1]).scores
    full = scorer.score(images, TEXTS).scores
    if of == "images":
        estimates, first, full = estimates.T, first.T, full.T
    winners = np.argsort(-full, axis=1, kind="stable")[:, :best]
    rows = zip(estimates, first, winners, strict=True)
    found = sorted(need_of(*row, best, 0.0, estimates.shape[1]) for row in rows)
    return Measured(len(found), tuple(it for it in found[:64] if np.isfinite(it)))
