"""Pruned search: the best candidates of one search after another, and their lists.

A search first scores candidates at the first noise level: all of them, or those of its list before
the cut (`dsd_trt.lists`). Elimination at further levels follows (`dsd_trt.search`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import counted
from dsd_trt.lists import OF_LIST, Audits, Outcome, Rule
from dsd_trt.log import get_logger
from dsd_trt.search import eliminate

logger = get_logger(__name__)

ERROR = 0.01
"""Accepted probability that a search loses one of the best, unless the caller says another."""

ScoreAt: TypeAlias = Callable[[NDArray[np.intp], int], NDArray[np.floating[Any]]]
"""Function of candidates and a level that returns scores; NaN drops a candidate."""

Turn = Literal["all", "list", "audit"]
"""What a search scores at the first level: all, its list up to the cut, or its list and the rest.
"""


def smallest_error(measured: int) -> float:
    """The smallest accepted error at which a list is cut.

    Args:
        measured: number of lists that the bound was measured on.
    """
    return 1 / (OF_LIST * (measured + 1))


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
        rule_at: function of a list's error that returns the rule of lists; None if there is none.
        batch: number of passes per run of the engine.
    """

    def __init__(
        self,
        levels: int,
        top_k: int,
        error: float = ERROR,
        rule_at: Callable[[float], Rule | None] = lambda error: None,
        batch: int = 1,
    ) -> None:
        self._levels, self._top_k, self._error, self._batch = levels, top_k, error, batch
        self._rule = rule_at(error)
        self._audits = Audits(OF_LIST * error)
        self._passes = 0  # of searches with a list

    def turn(self, count: int) -> Turn:
        """What the next search is to score at the first level, of `count` candidates."""
        rule = self._rule
        if rule is None or self._audits.ended or count <= rule.first_stop(count, self._batch):
            return "all"
        return "audit" if self._audits.due else "list"

    def find(
        self,
        turn: Turn,
        score_at: ScoreAt,
        count: int,
        estimates: Callable[[], NDArray[np.floating[Any]]] | None = None,
    ) -> Found:
        """Find the best of some candidates.

        Args:
            turn: what to score at the first level, from `turn`.
            score_at: function of candidates and a level that returns scores.
            count: number of candidates, at least 1.
            estimates: function that returns estimates of the scores, (candidates,); called for a
                list alone.
        """
        if turn == "all" or self._rule is None or estimates is None:
            every = eliminate(score_at, count, self._levels, self._top_k, self._error)
            return Found(every, None)
        known = _Scores(score_at, count, self._levels)
        kept, _ = self._rule.follow(estimates(), lambda some: known(some, 0), self._batch)
        followed = self._best_of(known, np.sort(kept), self._rule)
        if turn == "list":
            return Found(followed, "followed")
        rest = (1 - OF_LIST) * self._error
        found = eliminate(known, count, self._levels, self._top_k, rest)
        return Found(found, "failed" if _is_better(found, followed, self._top_k) else "passed")

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

    def _best_of(self, known: _Scores, kept: NDArray[np.intp], rule: Rule) -> NDArray[np.float32]:
        """Means of the best of a list's candidates before the cut; NaN for all others.

        Args:
            known: scores of the list, in which those of the first level are known.
            kept: candidates before the cut, ascending.
            rule: rule of the list.
        """
        means = np.full(len(known.scores), np.nan, np.float32)
        if rule.margin == np.inf:
            error = (1 - OF_LIST) * self._error
            means[kept] = eliminate(
                lambda some, level: known(kept[some], level),
                *(len(kept), self._levels, self._top_k, error),
            )
            return means
        first = known.scores[kept, 0]
        ranked = np.sort(first[~np.isnan(first)])
        if not len(ranked):
            return means
        leader = ranked[max(len(ranked) - rule.best, 0)]
        near = kept[first >= leader - rule.margin]
        for level in range(1, self._levels):
            known(near, level)
        means[near] = known.scores[near].mean(axis=1)
        return means


class _Scores:
    """Scores of one search, each asked for once.

    Args:
        score_at: function of candidates and a level that returns scores.
        count: number of candidates of the search.
        levels: number of noise levels.

    Attributes:
        scores: scores so far, (candidates, levels); NaN where none was asked for, or none is.
    """

    def __init__(self, score_at: ScoreAt, count: int, levels: int) -> None:
        self._score_at = score_at
        self._asked = np.zeros((count, levels), np.bool_)
        self.scores = np.full((count, levels), np.nan)

    def __call__(self, candidates: NDArray[np.intp], level: int) -> NDArray[np.float64]:
        missing = candidates[~self._asked[candidates, level]]
        if len(missing):
            self.scores[missing, level] = self._score_at(missing, level)
            self._asked[missing, level] = True
        return self.scores[candidates, level]


def _is_better(every: NDArray[np.float32], kept: NDArray[np.float32], best: int) -> bool:
    """Whether the best of all have higher scores than the best of those that a list kept."""
    every, kept = (np.sort(it[~np.isnan(it)])[::-1][:best] for it in (every, kept))
    return len(kept) < len(every) or bool((every > kept).any())
