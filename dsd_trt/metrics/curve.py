"""Ranking and thresholds: ROC AUC, average precision, precision and recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dsd_trt.metrics.pairs import Floats, checked


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold keeps.

    Attributes:
        threshold: smallest score that is kept.
        kept: number of pairs kept.
        precision: share of positives among the pairs kept; NaN if none is.
        recall: share of the positives that are kept; NaN if there are none.
    """

    threshold: float
    kept: int
    precision: float
    recall: float


def roc_auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: chance that a positive pair outscores a negative; a tie is half.

    NaN if all pairs have one label.
    """
    positives, negatives = _curve(scores, labels, weights)[1:]
    above = np.cumsum(positives) - positives / 2  # of each distinct score, from the highest
    whole = positives.sum() * negatives.sum()
    return float(above @ negatives / whole) if whole else float("nan")


def average_precision(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Precision at every distinct score, averaged by the recall that the score adds.

    NaN without positives. Equal scores are one threshold, and nothing is interpolated.
    """
    positives, negatives = _curve(scores, labels, weights)[1:]
    kept = np.cumsum(positives + negatives)
    precision = np.cumsum(positives) / np.where(kept > 0, kept, 1)
    total = positives.sum()
    return float(precision @ positives / total) if total else float("nan")


def at_threshold(
    scores: ArrayLike, labels: ArrayLike, threshold: float, weights: ArrayLike | None = None
) -> OperatingPoint:
    """Precision and recall of the pairs that a threshold keeps."""
    values, positive, weight = checked(scores, labels, weights)
    kept = values >= threshold
    true, all_kept, all_true = weight @ (kept & positive), weight @ kept, weight @ positive
    return OperatingPoint(
        threshold=threshold,
        kept=int(kept.sum()),
        precision=float(true / all_kept) if all_kept else float("nan"),
        recall=float(true / all_true) if all_true else float("nan"),
    )


def _curve(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    """Distinct scores, falling, with the weight of their positives and of their negatives."""
    values, positive, weight = checked(scores, labels, weights)
    distinct, place = np.unique(-values, return_inverse=True)
    size = len(distinct)
    return (
        -distinct,
        np.bincount(place, weight * positive, size),
        np.bincount(place, weight * ~positive, size),
    )
