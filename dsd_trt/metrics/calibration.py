"""How far probabilities can be believed: reliability, calibration error, proper losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsd_trt.metrics.pairs import Floats, checked

BINS = 10
"""Most bins of a calibration error; see `bins_for`."""
_PAIRS_PER_BIN = 15  # fewer make a bin's share of positives too uncertain to show anything
_DRAWS = 200
_LEAST = 1e-15  # a probability's distance from 0 and 1 in the logarithmic loss


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        pairs: number of pairs in the bin.
        weight: their share of the weight of all pairs.
        probability: mean probability of the pairs.
        positives: share of positives among them.
    """

    pairs: int
    weight: float
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
    _, place = np.unique(values, return_inverse=True)
    number = _bin_numbers(place, weight, bins or bins_for(len(values)))
    found = []
    for at in np.unique(number[weight > 0]):
        chosen = number == at
        of_bin = weight[chosen].sum()
        own = weight[chosen] / of_bin
        found.append(
            Bin(
                pairs=int(chosen.sum()),
                weight=float(of_bin / weight.sum()),
                probability=float(own @ values[chosen]),
                positives=float(own @ positive[chosen]),
            )
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
    weight = checked(probabilities, labels, weights)[2]
    return Calibrated(probabilities, labels, bins).error(weight)


class Calibrated:
    """Labelled pairs by probability, for calibration errors under many weights.

    Args:
        probabilities: probability of each pair, (pairs,).
        labels: label of each pair, (pairs,).
        bins: number of bins, as for `reliability`.
    """

    def __init__(
        self, probabilities: ArrayLike, labels: ArrayLike, bins: int | None = None
    ) -> None:
        values, positive, _ = checked(probabilities, labels, None)
        self._bins = bins or bins_for(len(values))
        self._gap = values - positive
        self._place = np.unique(values, return_inverse=True)[1]

    def error(self, weights: Floats) -> float:
        """As `calibration_error`; NaN without any weight."""
        if not (whole := weights.sum()):
            return float("nan")
        gaps = np.bincount(_bin_numbers(self._place, weights, self._bins), weights * self._gap)
        return float(np.abs(gaps).sum() / whole)


def chance_calibration_error(
    probabilities: ArrayLike,
    bins: int | None = None,
    seed: int = 0,
    weights: tuple[float, float] = (1.0, 1.0),
) -> float:
    """Mean calibration error of perfect probabilities: labels are drawn from them, 200 times.

    Args:
        probabilities: probability of each pair, (pairs,).
        bins: number of bins, as for `reliability`.
        seed: random seed of the labels.
        weights: weight of a negative and of a positive pair, see `class_weights`.
    """
    p = np.asarray(probabilities, np.float64)
    down, up = weights
    share = p * down / (p * down + (1 - p) * up)  # of positives, before pairs are weighed
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(_DRAWS):
        labels = rng.random(len(p)) < share
        errors.append(calibration_error(p, labels, bins, np.where(labels, up, down)))
    return float(np.mean(errors))


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


def _bin_numbers(place: NDArray[np.intp], weight: Floats, bins: int) -> NDArray[np.intp]:
    """Number of each pair's bin: the middle of the weight of its distinct value decides.

    Args:
        place: number of each pair's probability among the distinct ones, from the smallest.
        weight: weight of each pair, (pairs,).
        bins: number of bins of equal weight.
    """
    mass = np.bincount(place, weight)
    middle = np.cumsum(mass) - mass / 2
    return np.minimum((bins * middle / mass.sum()).astype(np.intp), bins - 1)[place]
