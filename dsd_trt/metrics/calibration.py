"""How far probabilities can be believed: reliability, calibration error, proper losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsd_trt.metrics.pairs import Floats, checked

BINS = 10
"""Most bins of a calibration error; see `bins_for`."""
_PAIRS_PER_BIN = 15  # fewer make a bin's share of positives too uncertain to show anything
_LEAST = 1e-15  # a probability's distance from 0 and 1 in the logarithmic loss


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        pairs: number of pairs in the bin.
        probability: their mean probability.
        positives: share of positives among them.
    """

    pairs: int
    probability: float
    positives: float


def bins_for(pairs: int) -> int:
    """Number of bins of a calibration error: `BINS`, but with at least 15 pairs per bin."""
    return int(np.clip(pairs // _PAIRS_PER_BIN, 1, BINS))


def reliability(
    probabilities: ArrayLike,
    labels: ArrayLike,
    bins: int | None = None,
    weights: ArrayLike | None = None,
) -> list[Bin]:
    """Bins of equal weight, from the smallest probability; equal probabilities share a bin.

    Args:
        probabilities: probability of each pair, (pairs,).
        labels: label of each pair, (pairs,).
        bins: number of bins, `bins_for` the pairs by default. Ties may leave bins empty, which
            are omitted.
        weights: weight of each pair, (pairs,).
    """
    values, positive, weight = checked(probabilities, labels, weights)
    number = _bin_numbers(values, weight, bins or bins_for(len(values)))
    found = []
    for at in np.unique(number[weight > 0]):
        chosen = number == at
        own = weight[chosen] / weight[chosen].sum()
        found.append(
            Bin(int(chosen.sum()), float(own @ values[chosen]), float(own @ positive[chosen]))
        )
    return found


def calibration_error(
    probabilities: ArrayLike,
    labels: ArrayLike,
    bins: int | None = None,
    weights: ArrayLike | None = None,
) -> float:
    """Expected calibration error over the bins of `reliability`.

    The distance of mean probability and share of positives, averaged by the bins' weight. Sampling
    alone makes it larger than 0: see `chance_calibration_error`.
    """
    values, positive, weight = checked(probabilities, labels, weights)
    number = _bin_numbers(values, weight, bins or bins_for(len(values)))
    gaps = np.bincount(number, weight * (values - positive))
    return float(np.abs(gaps).sum() / weight.sum())


def chance_calibration_error(
    probabilities: ArrayLike, bins: int | None = None, seed: int = 0, draws: int = 200
) -> float:
    """Mean calibration error of perfect probabilities: labels are drawn from them."""
    values = np.asarray(probabilities, np.float64)
    rng = np.random.default_rng(seed)
    return float(
        np.mean(
            [
                calibration_error(values, rng.random(len(values)) < values, bins)
                for _ in range(draws)
            ]
        )
    )


def brier(probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean squared distance of probability and label."""
    values, positive, weight = checked(probabilities, labels, weights)
    return float(weight @ (values - positive) ** 2 / weight.sum())


def log_loss(
    probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    values, positive, weight = checked(probabilities, labels, weights)
    own = np.clip(np.where(positive, values, 1 - values), _LEAST, 1)
    return float(-(weight @ np.log(own)) / weight.sum())


def _bin_numbers(values: Floats, weight: Floats, bins: int) -> NDArray[np.intp]:
    """Number of each pair's bin; the middle of a distinct value's weight decides."""
    _, place = np.unique(values, return_inverse=True)
    mass = np.bincount(place, weight)
    middle = np.cumsum(mass) - mass / 2
    return np.minimum((bins * middle / mass.sum()).astype(np.intp), bins - 1)[place]
