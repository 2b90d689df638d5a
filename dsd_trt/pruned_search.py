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
from dsd_trt.lists import Audits, Outcome, Rule
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

_OF_LIST = 0.75  # share of the accepted error that a list may spend; elimination has the rest


def smallest_error(measured: int) -> float:
    """The smallest accepted error at which a list is cut.

    Args:
        measured: number of lists that the bound was measured on.
    """
    return 1 / (_OF_LIST * (measured + 1))


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
        self._rule = rule_at(_OF_LIST * error)
        self._audits = Audits(_OF_LIST * error)
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
        first = np.full(count, np.nan)
        kept, scores = self._rule.follow(estimates(), lambda some: score_at(some, 0), self._batch)
        first[kept] = scores
        if turn == "list":
            return Found(self._eliminated(score_at, first, np.sort(kept)), "followed")
        cut = np.setdiff1d(np.arange(count), kept)
        if len(cut):
            first[cut] = score_at(cut, 0)
        found = self._eliminated(score_at, first, np.arange(count))
        return Found(found, "failed" if _is_better(found, found[kept], self._top_k) else "passed")

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

    def _eliminated(
        self, score_at: ScoreAt, first: NDArray[np.float64], scored: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Means of the candidates that were scored at the first level; NaN for all others."""

        def score(candidates: NDArray[np.intp], level: int) -> NDArray[np.floating[Any]]:
            return score_at(scored[candidates], level) if level else first[scored[candidates]]

        means = np.full(len(first), np.nan, np.float32)
        error = (1 - _OF_LIST) * self._error
        means[scored] = eliminate(score, len(scored), self._levels, self._top_k, error)
        return means


def _is_better(every: NDArray[np.float32], kept: NDArray[np.float32], best: int) -> bool:
    """Whether the best of all have higher scores than the best of those that a list kept."""
    every, kept = (np.sort(it[~np.isnan(it)])[::-1][:best] for it in (every, kept))
    return len(kept) < len(every) or bool((every > kept).any())
