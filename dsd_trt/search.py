"""The best few of many, without scoring all of them at every noise level.

Successive elimination: all candidates are scored at one level, and those that can still be among
the best at the next ones. A candidate's levels scatter about its mean; how much is measured on the
candidates that have been scored at two or more, and says how far a mean over some of the levels may
lie from the mean over all.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_FIRST = 16  # candidates whose second level shows how much levels scatter


def eliminate(
    score_at: Callable[[NDArray[np.intp], int], NDArray[np.floating]],
    count: int,
    levels: int,
    best: int,
    error: float = 0.01,
) -> NDArray[np.float32]:
    """Find the best of some candidates.

    A candidate is dropped when, over the levels both were scored at, it lies so far behind the
    last of the `best` leaders that it would overtake it with a probability below `error`, shared
    out among all candidates, if levels scattered normally and independently.

    Args:
        score_at: scores of some candidates at a level; NaN drops a candidate.
        count: how many candidates there are.
        levels: how many levels.
        best: how many are wanted.
        error: accepted probability that one of them is lost.

    Returns:
        Means over all levels, (count,); NaN for what was dropped.
    """
    scores = np.full((count, levels), np.nan)
    every = np.arange(count)
    scores[:, 0] = score_at(every, 0)
    seen = np.ones(count, np.intp)  # levels of each candidate
    alive = ~np.isnan(scores[:, 0])
    z = NormalDist().inv_cdf(1 - error / max(count, 2))
    while True:
        unfinished = alive & (seen < levels)
        if not unfinished.any():
            break
        least = seen[unfinished].min()
        turn = np.flatnonzero(unfinished & (seen == least))
        if seen.max() == 1:  # nothing is known of the levels' scatter yet
            turn = turn[np.argsort(-scores[turn, 0], kind="stable")[: max(_FIRST, 4 * best)]]
        scores[turn, least] = score_at(turn, int(least))
        seen[turn] += 1
        alive[turn] &= ~np.isnan(scores[turn, least])
        alive &= ~_hopeless(scores, seen, alive, best, z)
    return np.where(alive, scores.mean(axis=1), np.nan).astype(np.float32)


def _hopeless(
    scores: Floats, seen: NDArray[np.intp], alive: NDArray[np.bool_], best: int, z: float
) -> NDArray[np.bool_]:
    """Which candidates cannot overtake the last of the leaders any more."""
    levels = scores.shape[1]
    most = int(seen.max())
    leaders = np.flatnonzero(alive & (seen == most))
    if len(leaders) < best:
        return np.zeros(len(seen), bool)
    means = scores[leaders, :most].mean(axis=1)
    last = scores[leaders[np.argsort(-means, kind="stable")[best - 1]]]
    hopeless = np.zeros(len(seen), bool)
    for common in range(1, most + 1):
        at = np.flatnonzero(alive & (seen == common))
        behind = last[:common].mean() - scores[at, :common].mean(axis=1)
        # Of a difference of two means over `common` of `levels` levels, from that over all.
        # Nothing is left to chance where all have been seen.
        rest = np.sqrt(2 * (1 / common - 1 / levels))
        spread = _scatter(scores, seen) * rest if common < levels else 0.0
        hopeless[at] = behind > z * spread
    return hopeless


def _scatter(scores: Floats, seen: NDArray[np.intp]) -> float:
    """Standard deviation of a level's score about its candidate's mean and its level's mean."""
    total, freedom = 0.0, 0
    for common in range(2, int(seen.max()) + 1):
        block = scores[seen == common, :common]
        block = block[np.isfinite(block).all(axis=1)]
        if len(block) > 1:
            rest = block - block.mean(axis=1, keepdims=True)
            rest -= rest.mean(axis=0, keepdims=True)
            total += float((rest**2).sum())
            freedom += (len(block) - 1) * (common - 1)
    return float(np.sqrt(total / freedom)) if freedom else np.inf


def same_best(
    pruned: NDArray[np.floating], full: NDArray[np.floating], best: int
) -> NDArray[np.bool_]:
    """Whether the best of each row are those of the full computation, in any order.

    Args:
        pruned: (rows, candidates), NaN for what was dropped.
        full: the same, all of them scored.
        best: how many count.
    """
    chosen = [
        np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable")[:, :best]
        for scores in (pruned, full)
    ]
    return np.array(
        [set(a) == set(b) for a, b in zip(*map(np.ndarray.tolist, chosen), strict=True)]
    )
