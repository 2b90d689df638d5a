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


class Ranking:
    """Labelled pairs by falling score, for figures that are wanted under many weights.

    Args:
        scores: score of each pair, (pairs,).
        labels: label of each pair, (pairs,).
    """

    def __init__(self, scores: ArrayLike, labels: ArrayLike) -> None:
        values, self._positive, _ = checked(scores, labels, None)
        distinct, self._place = np.unique(-values, return_inverse=True)
        self._count = len(distinct)

    def roc_auc(self, weights: Floats) -> float:
        """As the function of that name."""
        positives, negatives = self._counts(weights)
        above = np.cumsum(positives) - positives / 2  # of each distinct score
        whole = positives.sum() * negatives.sum()
        return float(above @ negatives / whole) if whole else float("nan")

    def average_precision(self, weights: Floats) -> float:
        """As the function of that name."""
        positives, negatives = self._counts(weights)
        kept = np.cumsum(positives + negatives)
        precision = np.cumsum(positives) / np.where(kept > 0, kept, 1)
        total = positives.sum()
        return float(precision @ positives / total) if total else float("nan")

    def _counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weight of the positives and of the negatives of each distinct score."""
        positives = np.bincount(self._place, weights * self._positive, self._count)
        negatives = np.bincount(self._place, weights * ~self._positive, self._count)
        return positives.astype(np.float64), negatives.astype(np.float64)


def roc_auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: chance that a positive pair outscores a negative; a tie is half.

    NaN if all pairs have one label.
    """
    return Ranking(scores, labels).roc_auc(checked(scores, labels, weights)[2])


def average_precision(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Precision at every distinct score, averaged by the recall that the score adds.

    NaN without positives. Equal scores are one threshold, and nothing is interpolated.
    """
    return Ranking(scores, labels).average_precision(checked(scores, labels, weights)[2])


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
