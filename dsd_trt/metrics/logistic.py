"""Match probabilities from scores: logistic regression with Platt's targets, cross-validated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsd_trt.errors import InputError, counted
from dsd_trt.metrics.pairs import Floats, checked, class_weights, numbered

FOLDS = 10
"""Most parts that pairs are split into for cross-validation."""
_STEPS = 100
_PRECISION = 1e-10  # of a Newton step, for scores of mean 0 and deviation 1


def fit_logistic(
    scores: ArrayLike, labels: ArrayLike, prior: float | None = None
) -> tuple[float, float]:
    """Scale a and offset b of the match probability sigmoid(a s + b), by maximum likelihood.

    The labels are smoothed as Platt did (1999): a positive pair counts as (n + 1) / (n + 2) of n
    positives, a negative as 1 / (m + 2) of m negatives. So a stays finite where scores separate the
    labels, and few pairs give no probability near 0 or 1.

    Args:
        scores: score s of each pair, (pairs,).
        labels: label of each pair, (pairs,).
        prior: share of positives that the probabilities are for; these pairs' by default.

    Returns:
        a and b. a is below 0 if negatives have the higher scores.

    Raises:
        InputError: all pairs have one label or one score, or a score is not finite.
    """
    values, positive, _ = checked(scores, labels, None)
    if positive.all() or not positive.any():
        raise InputError(
            f"{counted(len(values), 'pair')} without a {'negative' if positive[0] else 'positive'} "
            "one: positives and negatives are needed"
        )
    weight = np.ones(len(values)) if prior is None else class_weights(positive, prior)
    if not np.ptp(values):  # a deviation of equal scores may be a rounding error above 0
        raise InputError(
            f"every score is {values[0]:g}, of {counted(len(values), 'pair')}: no probability can "
            "be fitted"
        )
    center, spread = values.mean(), values.std()
    n, m = positive.sum(), (~positive).sum()
    target = np.where(positive, (n + 1) / (n + 2), 1 / (m + 2))
    x = np.stack([(values - center) / spread, np.ones(len(values))])  # (2, pairs)

    def loss(theta: Floats) -> float:
        logit = theta @ x
        return float(weight @ (np.logaddexp(0, logit) - target * logit))

    theta = np.zeros(2)
    for _ in range(_STEPS):
        p = _sigmoid(theta @ x)
        gradient = x @ (weight * (p - target))
        hessian = (x * (weight * p * (1 - p))) @ x.T
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        before = loss(theta)
        while loss(theta - step) > before and np.abs(step).max() > _PRECISION:
            step /= 2  # the loss is convex: a short enough step lowers it
        theta = theta - step
        if np.abs(step).max() <= _PRECISION:
            break
    a = theta[0] / spread
    return float(a), float(theta[1] - a * center)


def cross_fitted(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[object],
    prior: float | None = None,
    seed: int = 0,
) -> Floats | None:
    """Probability of each pair, by a fit to pairs of other groups.

    Args:
        scores: score of each pair, (pairs,).
        labels: label of each pair, (pairs,).
        groups: group of each pair, such as its image's name; a group is in one part.
        prior: share of positives, as for `fit_logistic`; that of all these pairs by default.
        seed: random seed of the parts.

    Returns:
        Probabilities, (pairs,); None if the other parts of some part lack a label.
    """
    values, positive, _ = checked(scores, labels, None)
    if prior is None:
        prior = float(positive.mean())
    part = _parts(numbered(groups), positive, seed)
    probabilities = np.empty(len(values))
    for number in range(int(part.max()) + 1):
        held = part == number
        if held.all() or positive[~held].all() or not positive[~held].any():
            return None
        if not np.ptp(values[~held]):
            return None
        a, b = fit_logistic(values[~held], positive[~held], prior)
        probabilities[held] = _sigmoid(a * values[held] + b)
    return probabilities


def _parts(of_group: NDArray[np.intp], positive: NDArray[np.bool_], seed: int) -> NDArray[np.intp]:
    """Part of each pair; groups with a positive, then the others, are dealt out at random."""
    count = int(of_group.max()) + 1
    has_positive = np.bincount(of_group, positive, count) > 0
    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(~has_positive[order], kind="stable")]
    part = np.empty(count, np.intp)
    part[order] = np.arange(count) % min(FOLDS, count)
    return part[of_group]


def _sigmoid(logit: Floats) -> Floats:
    value: Floats = 0.5 + 0.5 * np.tanh(logit / 2)  # cannot overflow
    return value
