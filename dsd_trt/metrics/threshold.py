"""Thresholds for a precision or a recall that is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsd_trt.errors import InputError
from dsd_trt.metrics.curve import OperatingPoint, at_threshold
from dsd_trt.metrics.pairs import Floats, checked, class_weights, numbered

CONFIDENCE = 0.9
"""Chance with which a chosen threshold reaches what was asked of it."""
LEAST_KEPT = 20
"""Pairs that a threshold chosen for a precision must keep, where there are as many."""
_ROUNDING = 1e-12


@dataclass(frozen=True)
class ChosenThreshold(OperatingPoint):
    """A threshold chosen for a precision or a recall.

    Attributes:
        bound: lower confidence bound of the precision or recall the threshold was chosen for.
        reached: whether `bound` is at least what was asked. If not, no threshold is sure to reach
            it, and this one comes closest: its bound is lower, or it keeps fewer than `LEAST_KEPT`
            pairs.
    """

    bound: float
    reached: bool


def threshold_for_precision(
    scores: ArrayLike,
    labels: ArrayLike,
    precision: float,
    *,
    groups: Sequence[object] | None = None,
    prior: float | None = None,
    confidence: float | None = CONFIDENCE,
) -> ChosenThreshold:
    """The smallest threshold whose precision is, with some confidence, at least what is asked.

    On other pairs, the smallest threshold that reaches a precision on these pairs misses it about
    every second time. Therefore the lower confidence bound must reach it: Wilson's, for the number
    of independent pairs that the kept ones are worth.

    Many thresholds tried are many chances to be lucky. So only few are: the first keeps the fewest
    pairs that could show the precision, and at least 20; each other keeps twice as many. From the
    last one that passes, pairs are added as long as each passes.

    Args:
        scores: score or probability of each pair, (pairs,).
        labels: label of each pair, (pairs,).
        precision: precision to reach, in (0, 1).
        groups: group of each pair, such as its image's name; None means independent pairs.
        prior: share of positives where the threshold will be used; these pairs' by default.
        confidence: chance with which the precision is reached, in [0.5, 1). None asks for it on
            these pairs alone.

    Raises:
        InputError: there are no positives, or the numbers lie outside their ranges.
    """
    return _choose(scores, labels, precision, groups, prior, confidence, of_kept=True)


def threshold_for_recall(
    scores: ArrayLike,
    labels: ArrayLike,
    recall: float,
    *,
    groups: Sequence[object] | None = None,
    prior: float | None = None,
    confidence: float | None = CONFIDENCE,
) -> ChosenThreshold:
    """The largest threshold whose recall is, with some confidence, at least what is asked.

    Args:
        scores: score or probability of each pair, (pairs,).
        labels: label of each pair, (pairs,).
        recall: recall to reach, in (0, 1).
        groups: group of each pair, such as its image's name; None means independent pairs.
        prior: share of positives where the threshold will be used, for the precision; these pairs'
            by default.
        confidence: chance with which the recall is reached, see `threshold_for_precision`.

    Raises:
        InputError: there are no positives, or the numbers lie outside their ranges.
    """
    return _choose(scores, labels, recall, groups, prior, confidence, of_kept=False)


def least_kept(precision: float, confidence: float = CONFIDENCE) -> int:
    """Fewest labelled pairs that a threshold must keep to reach a precision, all being positive.

    Wilson's bound of n positives among n is n / (n + z^2).

    Args:
        precision: precision to reach, in (0, 1).
        confidence: chance with which it is reached, see `threshold_for_precision`.
    """
    z = NormalDist().inv_cdf(confidence)
    return max(math.ceil(z * z * precision / (1 - precision) - _ROUNDING), LEAST_KEPT)


def _choose(
    scores: ArrayLike,
    labels: ArrayLike,
    asked: float,
    groups: Sequence[object] | None,
    prior: float | None,
    confidence: float | None,
    *,
    of_kept: bool,
) -> ChosenThreshold:
    what = "precision" if of_kept else "recall"
    if not 0 < asked < 1:
        raise InputError(f"the {what} to reach must lie between 0 and 1, got {asked:g}")
    if confidence is not None and not 0.5 <= confidence < 1:
        raise InputError(f"the confidence must be from 0.5 to below 1, got {confidence:g}")
    values, positive, _ = checked(scores, labels, None)
    if not positive.any():
        raise InputError("no pair has the label 1: a threshold needs positives")
    order = np.argsort(-values, kind="stable")
    values, positive = values[order], positive[order]
    last = np.append(values[1:] != values[:-1], True)  # a threshold keeps all pairs of a score
    trials = np.arange(1, len(values) + 1) if of_kept else np.full(len(values), positive.sum())
    share = np.cumsum(positive) / trials
    worth = trials.astype(np.float64)
    if groups is not None:
        of_group = numbered(groups)[order]
        worth /= _design_effect(share, positive, of_group, of_kept=of_kept)
    weight = np.ones(len(values)) if prior is None else class_weights(positive, prior)

    def bounded(share: Floats, trials: Floats) -> Floats:
        """Lower bound of the precision at the prior, or of the recall."""
        bound = share if confidence is None else wilson_lower(share, trials, confidence)
        if not of_kept or prior is None:
            return bound
        odds = weight[positive][0] * bound
        return np.asarray(odds / (odds + weight[~positive][0] * (1 - bound)))

    bound = bounded(share, worth)
    enough = last & (bound >= asked - _ROUNDING)
    if of_kept and confidence is not None:
        could = bounded(np.ones(len(values)), trials.astype(np.float64)) >= asked - _ROUNDING
        could &= trials >= min(LEAST_KEPT, len(values))
        enough &= _tried(enough, np.flatnonzero(last & could))
    passed = np.flatnonzero(enough)
    if len(passed):
        at = int(passed[-1] if of_kept else passed[0])
    else:
        at = int(np.flatnonzero(last)[np.argmax(bound[last])])
    lowest = float(values[at])
    threshold = lowest if at + 1 == len(values) else _short(float(values[at + 1]), lowest)
    point = at_threshold(values, positive, threshold, weight)
    return ChosenThreshold(
        threshold=threshold,
        kept=point.kept,
        precision=point.precision,
        recall=point.recall,
        bound=float(bound[at]),
        reached=bool(len(passed)),
    )


def _tried(enough: NDArray[np.bool_], able: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which thresholds are tried, in the order of `threshold_for_precision`.

    Args:
        enough: whether each threshold is good enough, by the place of the last pair it keeps.
        able: places of the thresholds that keep enough pairs, rising.
    """
    tried = np.zeros_like(enough)
    kept, at = 0, -1
    for place in able:
        if place + 1 >= kept:
            kept, tried[place] = 2 * (int(place) + 1), True
            at = int(place) if enough[place] else at
    for place in able[able > at] if at >= 0 else ():
        tried[place] = True
        if not enough[place]:
            break
    return tried


def wilson_lower(share: Floats, trials: Floats, confidence: float) -> Floats:
    """One-sided lower confidence bound of a share of some trials (Wilson's score interval)."""
    z = NormalDist().inv_cdf(confidence)
    spread = z * np.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    bound: Floats = (share + z * z / (2 * trials) - spread) / (1 + z * z / trials)
    return bound


def _design_effect(
    share: Floats, positive: NDArray[np.bool_], of_group: NDArray[np.intp], *, of_kept: bool
) -> Floats:
    """How much groups inflate the variance of a share, at least 1, (pairs,).

    The variance of a ratio of sums over groups, divided by that of independent pairs. Entry i is
    that of the first i + 1 pairs.

    Args:
        share: precision or recall of the first i + 1 pairs.
        positive: whether each pair is positive, by falling score.
        of_group: number of each pair's group.
        of_kept: whether the share is the precision; else it is the recall.
    """
    hit = positive.astype(np.float64)
    hits = _earlier(hit, of_group)  # of the pair's group, before it
    squares = np.cumsum(2 * hits * hit + hit)  # sum of squared hits per group
    if of_kept:
        trials = _earlier(np.ones_like(hit), of_group)
        mixed = np.cumsum(hits + hit * trials + hit)
        trial_squares = np.cumsum(2 * trials + 1)
        count = np.arange(1, len(hit) + 1)
    else:
        of_each = np.bincount(of_group, hit)
        mixed = np.cumsum(hit * of_each[of_group])
        trial_squares = np.full(len(hit), of_each @ of_each)
        count = np.full(len(hit), int(hit.sum()))
    grouped = squares - 2 * share * mixed + share**2 * trial_squares
    alone = count * share * (1 - share)
    return np.maximum(grouped / np.where(alone > 0, alone, np.inf), 1.0)


def _earlier(values: Floats, of_group: NDArray[np.intp]) -> Floats:
    """Sum of the values of a pair's group before the pair, (pairs,)."""
    order = np.argsort(of_group, kind="stable")
    own, group = values[order], of_group[order]
    before = np.cumsum(own) - own
    first = np.append(True, group[1:] != group[:-1])
    result = np.empty_like(values)
    result[order] = before - before[np.maximum.accumulate(np.where(first, np.arange(len(own)), 0))]
    return result


def _short(below: float, lowest: float) -> float:
    """The number of fewest digits above `below` and at most `lowest`; also true in FP32."""
    for digits in range(18):
        number = math.floor(lowest * 10.0**digits) / 10.0**digits
        single = float(np.float32(number))
        if below < number <= lowest and below < single <= lowest:
            return number
    return lowest
