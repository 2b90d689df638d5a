"""All figures of labelled pairs, each with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_trt.metrics.bootstrap import bootstrap
from dsd_trt.metrics.calibration import Calibrated, bins_for, chance_calibration_error
from dsd_trt.metrics.curve import Ranking
from dsd_trt.metrics.pairs import Floats, checked, class_weights

CONFIDENCE = 0.95
"""Chance that an interval of a summary covers the true value."""
_DRAWS = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval; NaN where the pairs do not determine it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AtThreshold:
    """What a threshold keeps.

    Attributes:
        threshold: smallest probability that is kept.
        kept: number of pairs kept.
        precision: share of positives among the pairs kept.
        recall: share of the positives that are kept.
    """

    threshold: float
    kept: int
    precision: Estimate
    recall: Estimate


@dataclass(frozen=True)
class Calibrations:
    """How far probabilities can be believed.

    Attributes:
        error: expected calibration error over the bins.
        chance: calibration error that sampling alone gives perfect probabilities.
        bins: number of bins of equal weight that both are computed with.
        brier: mean squared distance of probability and label.
    """

    error: Estimate
    chance: float
    bins: int
    brier: Estimate


@dataclass(frozen=True)
class Summary:
    """Figures of labelled pairs.

    Attributes:
        pairs: number of labelled pairs.
        positives: number of positive pairs.
        groups: number of groups, such as images; intervals resample these.
        prior: share of positives that precision, average precision and calibration are for.
        roc_auc: area under the ROC curve.
        average_precision: precision averaged over recall.
        at: what each threshold keeps; empty without probabilities.
        calibration: quality of the probabilities; None without any.
    """

    pairs: int
    positives: int
    groups: int
    prior: float
    roc_auc: Estimate
    average_precision: Estimate
    at: tuple[AtThreshold, ...]
    calibration: Calibrations | None


def summarize(
    scores: NDArray[np.floating],
    labels: NDArray[np.bool_],
    groups: Sequence[object],
    probabilities: NDArray[np.floating] | None = None,
    thresholds: Sequence[float] = (),
    prior: float | None = None,
    seed: int = 0,
) -> Summary:
    """Measure labelled pairs.

    Args:
        scores: score of each pair, finite, (pairs,).
        labels: label of each pair, (pairs,).
        groups: group of each pair, such as its image's name.
        probabilities: match probability of each pair, (pairs,); None if there are none.
        thresholds: probabilities from which on pairs are kept.
        prior: share of positives to weigh the pairs to; None is their own.
        seed: random seed of the bootstrap.
    """
    ranking = Ranking(scores, labels)
    positive = checked(scores, labels, None)[1]
    weight = np.ones(len(positive)) if prior is None else class_weights(positive, prior)
    judged = None if probabilities is None else Calibrated(probabilities, positive)
    squares = np.zeros(0) if probabilities is None else (probabilities - positive) ** 2
    at = [] if probabilities is None else list(thresholds)
    kept = [np.asarray(probabilities) >= threshold for threshold in at]

    def share(of: NDArray[np.bool_], among: NDArray[np.bool_], own: Floats) -> float:
        whole = own @ among
        return float(own @ of / whole) if whole else math.nan

    def figures(drawn: Floats) -> list[float]:
        own = drawn * weight
        found = [ranking.roc_auc(own), ranking.average_precision(own)]
        if judged is not None:
            found.append(judged.error(own))
            found.append(float(own @ squares / own.sum()))
        for chosen in kept:
            true = chosen & positive
            found += [share(true, chosen, own), share(true, positive, own)]
        return found

    values = figures(np.ones(len(positive)))
    intervals = bootstrap(figures, groups, seed, CONFIDENCE, _DRAWS)
    estimates = iter(Estimate(it, *bounds) for it, bounds in zip(values, intervals, strict=True))
    auc, average = next(estimates), next(estimates)
    calibration = None
    if probabilities is not None:
        bins = bins_for(len(positive))
        of_label = (1.0, 1.0)
        if prior is not None:
            of_label = (float(weight[~positive][0]), float(weight[positive][0]))
        chance = chance_calibration_error(probabilities, bins, seed, of_label)
        calibration = Calibrations(next(estimates), chance, bins, next(estimates))
    return Summary(
        pairs=len(positive),
        positives=int(positive.sum()),
        groups=len(set(groups)),
        prior=float(positive.mean()) if prior is None else prior,
        roc_auc=auc,
        average_precision=average,
        at=tuple(
            AtThreshold(it, int(chosen.sum()), next(estimates), next(estimates))
            for it, chosen in zip(at, kept, strict=True)
        ),
        calibration=calibration,
    )
