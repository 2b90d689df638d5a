"""Pruned search: the searches of a run, and their lists.

A search first scores candidates at the first noise level: all of them, or those of its list before
the cut (`dsd_trt.lists`). Elimination at further levels follows (`dsd_trt.search`). Searches can be
made together, so that what they request fills the engine's batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import counted
from dsd_trt.lists import OF_LIST, OF_MARGIN, Audits, Outcome, Rule
from dsd_trt.log import get_logger
from dsd_trt.search import Request, Result, Steps, elimination

logger = get_logger(__name__)

ERROR = 0.01
"""Accepted probability that a search loses one of the best, unless the caller says another."""

_TOGETHER, _HELD = 32, 1_000_000  # searches that are made together, and their candidates

Turn = Literal["all", "list", "audit"]
"""What a search scores at the first level: all, its list up to the cut, or its list and the rest.
"""


def smallest_error(measured: int) -> float:
    """The smallest accepted error of two digits at which a list is cut.

    Args:
        measured: number of lists that the bound was measured on.
    """
    least = 1 / (OF_LIST * (measured + 1))
    digits = 1 - math.floor(math.log10(least))
    steps = math.floor(least * 10**digits)
    while OF_LIST * (error := round(steps / 10**digits, digits)) * (measured + 1) < 1:
        steps += 1
    return error


class Found(NamedTuple):
    """Result of one search.

    Attributes:
        scores: means over all levels, float32 (candidates,); NaN for dropped candidates.
        outcome: outcome of its list; None without one.
    """

    scores: NDArray[np.float32]
    outcome: Outcome | None


class PrunedSearch:
    """The searches of one run, which share their audits.

    Args:
        levels: number of noise levels.
        top_k: number of candidates to find.
        error: accepted probability of losing one of the best, in (0, 0.5].
        rule: rule of lists at this error; None makes no lists.
        batch: number of passes per run of the engine.
    """

    def __init__(
        self,
        levels: int,
        top_k: int,
        error: float = ERROR,
        rule: Rule | None = None,
        batch: int = 1,
    ) -> None:
        self._levels, self._top_k, self._error, self._batch = levels, top_k, error, batch
        self._rule = rule
        self._audits = Audits(error)
        self._passes = 0  # of searches with a list

    def together(self, candidates: int) -> int:
        """Number of searches of as many candidates to make together next.

        Lists are no more than those before them, so that a useless estimate is noticed by the first
        audits, and no more than passes per run of the engine. Searches without lists are as many as
        fill such a run. Memory bounds both.
        """
        candidates = max(1, candidates)
        fitting = min(_TOGETHER, _HELD // candidates)
        if self._has_lists(candidates):
            fitting = min(fitting, self._batch, self._audits.lists)
        else:
            fitting = min(fitting, math.ceil(self._batch / candidates))
        return max(1, fitting)

    def turn(self, count: int) -> Turn:
        """What the next search is to score at the first level, of `count` candidates."""
        return self.turns([count])[0]

    def turns(self, counts: Sequence[int]) -> list[Turn]:
        """The same of the next searches, which are made together: `counts` of their candidates."""
        turns, lists = list[Turn](), 0
        for count in counts:
            if self._has_lists(count):
                turns.append("audit" if self._audits.due(lists) else "list")
                lists += 1
            else:
                turns.append("all")
        return turns

    def _has_lists(self, candidates: int) -> bool:
        """Whether the next search makes a list of its `candidates`."""
        if self._rule is None or self._audits.ended:
            return False
        return candidates > self._rule.too_few(self._batch)

    def steps(
        self,
        turn: Turn,
        count: int,
        estimates: NDArray[np.floating[Any]] | None = None,
        together: int = 1,
    ) -> Steps[Found]:
        """The search for the best of some candidates.

        Args:
            turn: what to score at the first level, from `turns`.
            count: number of candidates, at least 1.
            estimates: estimates of the scores, (candidates,), which a list needs.
            together: number of searches that are made together.
        """
        if turn == "all" or self._rule is None or estimates is None:
            every = yield from elimination(count, self._levels, self._top_k, self._error)
            return Found(every, None)
        known, all_of_them = _Scores(count, self._levels), np.arange(count)
        list_of_it = self._rule.follow(estimates, self._shared(together))
        kept = yield from known.spared(list_of_it, all_of_them)
        followed = yield from self._best_of(known, np.sort(kept), self._rule)
        if turn == "list":
            return Found(followed, "followed")
        rest = (1 - OF_LIST) * self._error
        elimination_of_all = elimination(count, self._levels, self._top_k, rest)
        found = yield from known.spared(elimination_of_all, all_of_them)
        return Found(found, "failed" if _is_better(found, followed, self._top_k) else "passed")

    def _shared(self, together: int) -> int:
        """Number of passes per run of the engine that each search may have."""
        return max(1, self._batch // max(1, together))

    def note(self, outcome: Outcome | None, passes: int) -> None:
        """Count a search of this run, or of the run that this one resumes.

        Args:
            outcome: outcome of its list; None without one.
            passes: number of passes that it took, its walk included.
        """
        if outcome is not None:
            self._audits.add(outcome)
            self._passes += passes

    def log(self, shared: int = 0) -> None:
        """Log the average number of passes of a list.

        Args:
            shared: number of walks that all lists shared.
        """
        audits = self._audits
        if audits.lists:
            logger.info(
                "%s of %.1f passes each on average, walks included; %s, of which %d failed",
                counted(audits.lists, "list"),
                (self._passes + shared) / audits.lists,
                counted(audits.audits, "audit"),
                audits.failures,
            )

    def _best_of(
        self, known: _Scores, kept: NDArray[np.intp], rule: Rule
    ) -> Steps[NDArray[np.float32]]:
        """Means of the best of a list's candidates before the cut; NaN for all others.

        Args:
            known: scores of the list, in which those of the first level are known.
            kept: candidates before the cut, ascending.
            rule: rule of the list.
        """
        means = np.full(len(known.scores), np.nan, np.float32)
        share, first = 1 - OF_LIST, known.scores[kept, 0]
        if rule.margin < np.inf:
            share -= OF_MARGIN
            leaders = np.sort(first[~np.isnan(first)])[-rule.best :]
            kept = kept[first >= leaders.min(initial=np.inf) - rule.margin]
        if len(kept):
            search = elimination(len(kept), self._levels, self._top_k, share * self._error)
            means[kept] = yield from known.spared(search, kept)
        return means


class _Scores:
    """Scores of one search, each requested once.

    Args:
        count: number of candidates of the search.
        levels: number of noise levels.

    Attributes:
        scores: scores so far, (candidates, levels); NaN where none was requested, or none is.
    """

    def __init__(self, count: int, levels: int) -> None:
        self._asked = np.zeros((count, levels), np.bool_)
        self.scores = np.full((count, levels), np.nan)

    def __call__(self, candidates: NDArray[np.intp], level: int) -> Steps[NDArray[np.float64]]:
        """Scores of some candidates at a level; those that are known are not requested."""
        missing = candidates[~self._asked[candidates, level]]
        if len(missing):
            self.scores[missing, level] = yield Request(missing, level)
            self._asked[missing, level] = True
        return self.scores[candidates, level]

    def spared(self, steps: Steps[Result], places: NDArray[np.intp]) -> Steps[Result]:
        """A search among the candidates at some places; what is known is not requested again."""
        try:
            request = next(steps)
            while True:
                scores = yield from self(places[request.candidates], request.level)
                request = steps.send(scores)
        except StopIteration as end:
            result: Result = end.value
            return result


def _is_better(every: NDArray[np.float32], kept: NDArray[np.float32], best: int) -> bool:
    """Whether the best of all have higher scores than the best of those that a list kept."""
    every, kept = (np.sort(it[~np.isnan(it)])[::-1][:best] for it in (every, kept))
    # There are fewer of all where those that displaced the others later had no score themselves.
    return len(kept) < len(every) or bool((every > kept[: len(every)]).any())
