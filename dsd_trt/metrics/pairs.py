"""Labelled pairs, checked: what every metric begins with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsd_trt.errors import InputError, counted

Floats = NDArray[np.float64]


def checked(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, NDArray[np.bool_], Floats]:
    """Scores, whether each pair is positive, and weights.

    Raises:
        InputError: there are no pairs, lengths differ, a score is not finite, or a label is neither
            0 nor 1.
    """
    values, given = np.asarray(scores, np.float64), np.asarray(labels)
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if values.ndim != 1 or not values.shape == given.shape == weight.shape:
        raise InputError(
            f"scores, labels and weights must be lists of one length, got shapes {values.shape}, "
            f"{given.shape} and {weight.shape}"
        )
    if not len(values):
        raise InputError("there are no pairs to measure")
    if not np.isfinite(values).all():
        raise InputError(
            f"scores that are not finite: {int((~np.isfinite(values)).sum())} of {len(values)}. "
            "Leave those pairs out"
        )
    if not np.isin(given, (0, 1)).all():
        raise InputError("labels must be 0 or 1")
    return values, given.astype(bool), weight


def class_weights(labels: ArrayLike, prior: float) -> Floats:
    """Weights that make a given share of the pairs positive, and sum to their number.

    Raises:
        InputError: all pairs have one label, or the share does not lie between 0 and 1.
    """
    if not 0 < prior < 1:
        raise InputError(f"the share of positives must lie between 0 and 1, got {prior:g}")
    positive = np.asarray(labels) != 0
    share = positive.mean()
    if not 0 < share < 1:
        raise InputError(
            f"{counted(positive.size, 'pair')} without a {'negative' if share else 'positive'} "
            "one: positives and negatives are needed"
        )
    weights: Floats = np.where(positive, prior / share, (1 - prior) / (1 - share))
    return weights


def numbered(groups: Sequence[object]) -> NDArray[np.intp]:
    """Number of each pair's group, in order of first appearance."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.intp)
