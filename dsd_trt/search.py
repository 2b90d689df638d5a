"""The best few of many candidates, without scoring all of them at every noise level.

Successive elimination: all candidates are scored at one level; those that can still be among the
best are scored at the next. A candidate's scores at single levels scatter about their mean. The
scatter is measured on candidates scored at two or more levels. It bounds how far a mean over some
levels may lie from the mean over all. Neighbouring levels agree more than distant ones, so the
first two are the lowest and the highest: the scatter between neighbours would promise too much.

`dsd_trt.lists` can spare most candidates even the first level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_FIRST_COMPARED = 16  # candidates whose second level gives the first estimate of the scatter
_MOST_FREEDOM = 200  # beyond it, Student's t is the normal distribution for our purpose
_LEAST_PROBABILITY = 1e-15  # what double precision can tell from 0 in a distribution's tail

Result = TypeVar("Result")


class Request(NamedTuple):
    """Scores that a search needs before it goes on.

    Attributes:
        candidates: candidates to score, (requested,).
        level: index of the noise level to score them at.
    """

    candidates: NDArray[np.intp]
    level: int


Steps: TypeAlias = Generator[Request, NDArray[np.floating], Result]
"""A search that yields requests, is sent their scores, and returns its result.

So searches can take turns, and what they request is scored together.
"""


def answered(
    steps: Steps[Result],
    score_at: Callable[[NDArray[np.intp], int], NDArray[np.floating]],
) -> Result:
    """The result of a search that is made alone.

    Args:
        steps: a search that has not begun.
        score_at: function of candidates and a level, returning scores; NaN drops a candidate.
    """
    try:
        request = next(steps)
        while True:
            request = steps.send(score_at(*request))
    except StopIteration as end:
        result: Result = end.value
        return result


def answered_together(
    searches: Sequence[Steps[Result]],
    score: Callable[[Sequence[tuple[int, NDArray[np.intp]]], int], Sequence[NDArray[Any]]],
) -> list[Result]:
    """The results of searches that are made together.

    At each turn, all requests for the level that most scores are requested of are answered. The
    others wait, so that they become more.

    Args:
        searches: searches that have not begun.
        score: function of the number of each search with a request and its candidates, and of a
            level, that returns the scores of each.
    """
    results: dict[int, Result] = {}
    open_requests: dict[int, Request] = {}

    def advance(number: int, scores: NDArray[Any] | None) -> None:
        steps = searches[number]
        try:
            open_requests[number] = next(steps) if scores is None else steps.send(scores)
        except StopIteration as end:
            results[number] = end.value

    for number in range(len(searches)):
        advance(number, None)
    while open_requests:
        requested: dict[int, int] = {}
        for candidates, level in open_requests.values():
            requested[level] = requested.get(level, 0) + len(candidates)
        most = max(requested, key=lambda level: (requested[level], -level))
        numbers = sorted(it for it, request in open_requests.items() if request.level == most)
        parts = [(number, open_requests.pop(number).candidates) for number in numbers]
        for number, scores in zip(numbers, score(parts, most), strict=True):
            advance(number, scores)
    return [results[number] for number in range(len(searches))]


def eliminate(
    score_at: Callable[[NDArray[np.intp], int], NDArray[np.floating]],
    count: int,
    levels: int,
    best: int,
    error: float,
) -> NDArray[np.float32]:
    """Find the best of some candidates; `score_at` as for `answered`, else as for `elimination`."""
    return answered(elimination(count, levels, best, error), score_at)


def elimination(count: int, levels: int, best: int, error: float) -> Steps[NDArray[np.float32]]:
    """The search for the best of some candidates.

    A candidate is compared with the last of the `best` leaders over the levels both were scored at.
    It is dropped once it would overtake that leader with a probability below `error`, which all
    candidates share. The probability assumes normal scatter, independent between levels, and knows
    that the scatter is estimated (Student's t).

    Args:
        count: number of candidates, at least 1.
        levels: number of noise levels.
        best: number of candidates to find.
        error: accepted probability of losing one of the best, in (0, 1).

    Returns:
        Means over all levels, (count,); NaN for dropped candidates.
    """
    order = level_order(levels)
    scores = np.full((count, levels), np.nan)  # columns in that order
    every = np.arange(count)
    scores[:, 0] = yield Request(every, order[0])
    seen = np.ones(count, np.intp)  # levels scored so far, (candidates,)
    alive = ~np.isnan(scores[:, 0])
    each = error / max(count, 2)
    while True:
        unfinished = alive & (seen < levels)
        if not unfinished.any():
            break
        least = seen[unfinished].min()
        turn = np.flatnonzero(unfinished & (seen == least))
        if seen.max() == 1:  # no estimate of the scatter yet
            compared = max(_FIRST_COMPARED, 4 * best)
            turn = turn[np.argsort(-scores[turn, 0], kind="stable")[:compared]]
        scores[turn, least] = yield Request(turn, order[least])
        seen[turn] += 1
        alive[turn] &= ~np.isnan(scores[turn, least])
        alive &= ~_hopeless(scores, seen, alive, best, each)
    # Summed by level, so that a mean is that of a search for all to the last bit.
    means = scores[:, np.argsort(order)].mean(axis=1)
    return np.where(alive, means, np.nan).astype(np.float32)


def level_order(levels: int) -> list[int]:
    """Noise levels in the order in which a search scores them: the two ends first."""
    return [0, levels - 1, *range(1, levels - 1)][:levels]


def _hopeless(
    scores: Floats, seen: NDArray[np.intp], alive: NDArray[np.bool_], best: int, each: float
) -> NDArray[np.bool_]:
    """Candidates that overtake the last of the leaders with a probability below `each`."""
    levels = scores.shape[1]
    most = int(seen.max())
    leaders = np.flatnonzero(alive & (seen == most))
    if len(leaders) < best:
        return np.zeros(len(seen), bool)
    means = scores[leaders, :most].mean(axis=1)
    last = scores[leaders[np.argsort(-means, kind="stable")[best - 1]]]
    scatter, freedom = _scatter(scores, seen)
    allowed = student_quantile(each, freedom) * scatter if freedom else np.inf
    hopeless = np.zeros(len(seen), bool)
    for common in range(1, most + 1):
        at = np.flatnonzero(alive & (seen == common))
        behind = last[:common].mean() - scores[at, :common].mean(axis=1)
        # Standard deviation of a difference of two means over `common` levels from the one
        # over all `levels`; zero once all levels are scored.
        rest = np.sqrt(2 * (1 / common - 1 / levels))
        hopeless[at] = behind > (allowed * rest if common < levels else 0.0)
    return hopeless


def _scatter(scores: Floats, seen: NDArray[np.intp]) -> tuple[float, int]:
    """Standard deviation of single-level scores about the means of candidate and level.

    Returns:
        The estimate and its degrees of freedom; 0 and 0 before any candidate has two levels.
    """
    total, freedom = 0.0, 0
    for common in range(2, int(seen.max()) + 1):
        block = scores[seen == common, :common]
        block = block[np.isfinite(block).all(axis=1)]
        if len(block) > 1:
            rest = block - block.mean(axis=1, keepdims=True)
            rest -= rest.mean(axis=0, keepdims=True)
            total += float((rest**2).sum())
            freedom += (len(block) - 1) * (common - 1)
    return math.sqrt(total / max(freedom, 1)), freedom


@lru_cache(maxsize=1024)
def student_quantile(probability: float, freedom: int) -> float:
    """The number that a variable with Student's t distribution exceeds with a probability.

    The distribution's closed form for whole degrees of freedom is Abramowitz and Stegun, 26.7.3
    and 26.7.4.

    Args:
        probability: at most a half; less than 1e-15 is taken for 1e-15.
        freedom: degrees of freedom, at least 1; more than 200 are taken for 200.
    """
    freedom, probability = min(freedom, _MOST_FREEDOM), max(probability, _LEAST_PROBABILITY)
    odd = freedom % 2

    def exceeds(t: float) -> float:
        cosine = math.sqrt(freedom / (freedom + t * t))
        total, term = 0.0, cosine if odd else 1.0
        for i in range(1 + odd, freedom, 2):
            total += term
            term *= cosine * cosine * i / (i + 1)
        within = total * t / math.sqrt(freedom + t * t)
        if odd:
            within = (within + math.atan(t / math.sqrt(freedom))) * 2 / math.pi
        return (1 - within) / 2

    low, high = 0.0, 1.0
    while exceeds(high) > probability and high < 1e12:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) > probability else (low, middle)
    return high


def same_best(
    pruned: NDArray[np.floating], full: NDArray[np.floating], best: int
) -> NDArray[np.bool_]:
    """Whether the best candidates of each row agree with the full computation, in any order.

    Args:
        pruned: scores with NaN for dropped candidates, (rows, candidates).
        full: scores of all candidates, (rows, candidates).
        best: number of best candidates to compare.
    """
    chosen = (_best_places(scores, best) for scores in (pruned, full))
    return np.array([a == b for a, b in zip(*chosen, strict=True)])


def _best_places(scores: NDArray[np.floating], best: int) -> list[set[int]]:
    """Places of the best candidates of each row, of those with a score."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable")[:, :best]
    rows = zip(scores, order.tolist(), strict=True)
    return [{it for it in of_row if not np.isnan(row[it])} for row, of_row in rows]
