"""Agreement of two score matrices: difference, rank correlation, top-1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Agreement:
    """Agreement of some scores with the reference's.

    Attributes:
        max_difference: largest absolute difference of two scores.
        spearman: rank correlation (Spearman) over all pairs, in [-1, 1].
        top1: share of images with the same best text, and of texts with the same best image, in [0,
            1].
    """

    max_difference: float
    spearman: float
    top1: float


def compare(scores: Floats, reference: Floats) -> Agreement:
    """Compare two (images, texts) matrices; a NaN makes every figure NaN or worse."""
    return Agreement(
        max_difference=float(np.abs(scores.astype(np.float64) - reference).max()),
        spearman=spearman(scores.ravel(), reference.ravel()),
        top1=top1_agreement(scores, reference),
    )


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation with mean ranks for ties; NaN if one side is constant."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    ranks = np.stack([_ranks(a), _ranks(b)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = np.sqrt((ranks**2).sum(axis=1).prod())
    return float(ranks.prod(axis=0).sum() / norm) if norm else float("nan")


def top1_agreement(a: Floats, b: Floats) -> float:
    """Share of rows and columns with the same maximum; a tied maximum counts as different."""
    same = [
        _winner(x) is not None and _winner(x) == _winner(y)
        for left, right in ((a, b), (a.T, b.T))
        for x, y in zip(left, right, strict=True)
    ]
    return sum(same) / len(same)


def _ranks(values: Floats) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # rank of each distinct value's last occurrence, from 1
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place.ravel()]
    return ranks


def _winner(values: Floats) -> int | None:
    """Index of the only maximum; None for a tie or a NaN."""
    (best,) = np.nonzero(values == values.max())
    return int(best[0]) if len(best) == 1 else None
