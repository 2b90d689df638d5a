"""Confidence intervals of any metric by resampling groups of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dsd_trt.metrics.pairs import Floats, numbered


def bootstrap(
    statistic: Callable[[Floats], Sequence[float]],
    groups: Sequence[object],
    seed: int = 0,
    confidence: float = 0.95,
    draws: int = 2000,
) -> list[tuple[float, float]]:
    """Confidence intervals by resampling groups of pairs; pairs of one image are not independent.

    Args:
        statistic: the statistics, given the number of times that each pair was drawn, (pairs,).
        groups: group of each pair, such as its image's name; a group is drawn as a whole.
        seed: random seed of the draws.
        confidence: chance that an interval covers the true value.
        draws: number of resamples of all groups.

    Returns:
        Lower and upper bound of each statistic: percentiles over the draws, without those where it
        is NaN; NaN if it always is.
    """
    place = numbered(groups)
    total = int(place.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        counts = np.bincount(rng.integers(total, size=total), minlength=total)
        drawn.append(statistic(counts[place].astype(np.float64)))
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    found = []
    for values in np.array(drawn, np.float64).T:
        finite = values[np.isfinite(values)]
        low, high = np.quantile(finite, tails) if len(finite) else (np.nan, np.nan)
        found.append((float(low), float(high)))
    return found
