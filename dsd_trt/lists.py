"""Lists: candidates in the order of an estimate of their score, scored only as far as needed.

Of M candidates, ordered by falling estimate f^, let k be scored at the first noise level. Let L_k
be the `best`-th highest of these scores, and d_k the mean of what they exceed their estimates by,
since a list's estimates are too high or too low together. The list is cut after k once its reach

    T_k = f^_(k+1) + d_k - L_k - slope * log(k * candidates / M)

is below a bound: what follows can then hardly be among the best. The *need* of a list is the bound
below which it would lose one of them. `dsd_trt.bundle.lists` makes the bound of measured needs,
which holds for lists like those. `Audits` notices in a run if its lists are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.lists import Kind, Lists
from dsd_trt.log import get_logger
from dsd_trt.search import Request, Steps

logger = get_logger(__name__)

Outcome = Literal["followed", "passed", "failed"]
"""Of a list: followed by the rule alone; audited, and none of the best was lost; or one was."""

_FEWEST = 4  # candidates that are scored at least
_SMALL_BATCH = 8  # up to which a chunk fills batches of the engine
_EVERY = 64  # lists of which one is audited
_AFTER_FAILURE = 8  # lists that are all audited: a change is noticed sooner
_IMPLAUSIBLE = 0.01  # probability of that many failures below which no list is cut any more


def list_order(estimates: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Candidates in the order of their list: falling estimate, those with NaN first.

    Args:
        estimates: estimates of the scores, (candidates,).
    """
    return np.argsort(-_known(estimates), kind="stable")


def reach(
    place: int,
    estimates: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    best: int,
    slope: float,
    candidates: int,
) -> float:
    """T_k of a list, in units of the score: how far what follows reaches above the best so far.

    Args:
        place: k, number of candidates that are scored, from 1 to M - 1.
        estimates: estimates in the order of the list, (M,); NaN is always reached.
        scores: scores at the first level in that order, at least k of them; NaN does not count.
        best: number of best candidates to find.
        slope: decrease of T_k when the place grows by a factor of e, in units of the score.
        candidates: number of candidates of the measured lists.

    Returns:
        T_k; inf where fewer than `best` candidates have a score, or none an estimate as well.
    """
    scored = np.asarray(scores[:place], np.float64)
    exceeded = scored - estimates[:place]
    scored, exceeded = (it[~np.isnan(it)] for it in (scored, exceeded))
    if len(scored) < best or not len(exceeded):
        return math.inf
    last = float(np.partition(scored, len(scored) - best)[len(scored) - best])
    following = float(estimates[place])
    if math.isnan(following):
        return math.inf
    # Summed in order, as in C++.
    following += sum(exceeded.tolist()) / len(exceeded)
    return following - last - slope * math.log(place * candidates / len(estimates))


def need_of(
    estimates: NDArray[np.floating[Any]],
    scores_at_first_level: NDArray[np.floating[Any]],
    winners: NDArray[np.intp],
    best: int,
    slope: float,
    candidates: int,
) -> float:
    """Need of a list whose candidates all have scores: the smallest T_k before its last winner.

    A bound above it would cut the list before that winner; every other bound would not.

    Args:
        estimates: estimates of the scores, (candidates,).
        scores_at_first_level: scores at the first noise level, (candidates,).
        winners: the `best` candidates by their mean over all levels.
        best: number of best candidates to find.
        slope: decrease of T_k when the place grows by a factor of e, in units of the score.
        candidates: number of candidates of the measured lists.

    Returns:
        The need, in units of the score; inf if no bound cuts too early.
    """
    order = list_order(estimates)
    estimates, scores = estimates[order], scores_at_first_level[order]
    place = int(np.flatnonzero(np.isin(order, winners)).max(initial=-1)) + 1
    reaches = (reach(k, estimates, scores, best, slope, candidates) for k in range(best, place))
    return min(reaches, default=math.inf)


def gap_of(
    scores_at_first_level: NDArray[np.floating[Any]], winners: NDArray[np.intp], best: int
) -> float:
    """Gap of a list: how far its best stand behind the leaders of the first level.

    Args:
        scores_at_first_level: scores at the first noise level, (candidates,).
        winners: the `best` candidates by their mean over all levels, which all have scores.
        best: number of best candidates to find.

    Returns:
        The distance from the `best`-th highest score to the lowest of the winners, in units of the
        score; 0 if the winners lead.
    """
    scores = np.sort(np.asarray(scores_at_first_level, np.float64))
    return float(scores[-best] - np.min(scores_at_first_level[winners]))


OF_LIST, OF_MARGIN = 0.666, 0.333
"""Shares of the accepted error that the cut of a list and its margin may spend. Elimination of what
is within the margin has the rest, of which little is enough: by then few candidates are left.
"""


@dataclass(frozen=True)
class Rule:
    """Says where a list is cut, and which of its candidates are scored at further levels.

    Attributes:
        best: number of best candidates that the bound was measured for.
        bound: value of T_k below which a list is cut, in units of the score.
        slope: decrease of T_k when the place grows by a factor of e, in units of the score.
        candidates: number of candidates of the measured lists.
        margin: distance behind the leaders of the first level up to which candidates are scored at
            further levels, in units of the score; inf where it was not measured.
    """

    best: int
    bound: float
    slope: float
    candidates: int
    margin: float = math.inf

    @classmethod
    def of(cls, lists: Lists, of: Kind, best: int, error: float) -> Rule | None:
        """The rule of a bundle's lists; None if they were not measured, or not often enough.

        Args:
            lists: lists of the bundle.
            of: what the lists are of.
            best: number of best candidates to find.
            error: accepted probability that a search loses one of its best.
        """
        if (found := lists.measured(of, best)) is None:
            return None
        measured_best, measured = found
        bound, margin = measured.bound(OF_LIST * error), measured.margin(OF_MARGIN * error)
        if bound == -math.inf:
            return None
        return cls(measured_best, bound, lists.slope, lists.candidates, margin)

    def stops(self, count: int, batch: int) -> Iterator[int]:
        """Places up to which a list of `count` candidates is scored, one after another.

        Chunks fill the engine's batches where these are small. They grow once they are less than a
        quarter of the place.

        Args:
            count: number of candidates of the list.
            batch: number of passes per run of the engine.
        """
        unit = batch if batch <= _SMALL_BATCH else _FEWEST
        place = self._first_stop(batch)
        while place < count:
            yield place
            # A power of two, so that an engine sees few sizes.
            place += unit * 2 ** max(0, (place // (4 * unit)).bit_length() - 1)
        yield count

    def too_few(self, batch: int) -> int:
        """Number of candidates up to which no list pays: most would be scored in any case.

        Args:
            batch: number of passes per run of the engine.
        """
        return max(self._first_stop(batch), 2 * self._first_stop(1))

    def _first_stop(self, batch: int) -> int:
        unit = batch if batch <= _SMALL_BATCH else _FEWEST
        return unit * math.ceil(max(_FEWEST, self.best + 3) / unit)

    def follow(self, estimates: NDArray[np.floating[Any]], batch: int) -> Steps[NDArray[np.intp]]:
        """Score a list until it is cut.

        Args:
            estimates: estimates of the scores, (candidates,).
            batch: number of passes per run of the engine that this list may have.

        Returns:
            The candidates that were scored, in the order of the list.
        """
        order = list_order(estimates)
        in_order = estimates[order]
        scores = np.full(len(order), np.nan)
        done = 0
        for stop in self.stops(len(order), batch):
            scores[done:stop] = yield Request(order[done:stop], 0)
            done = stop
            if done < len(order) and self._cuts(done, in_order, scores):
                break
        return order[:done]

    def _cuts(
        self, place: int, estimates: NDArray[np.floating[Any]], scores: NDArray[np.float64]
    ) -> bool:
        at = reach(place, estimates, scores, self.best, self.slope, self.candidates)
        return at < self.bound


class Audits:
    """Notices in a run that lists lose more than was accepted, and ends them.

    A list is audited by scoring all of its candidates: lists 0, 1, 2, 4, 8 and so on to 64, then
    every 64th, and the 8 lists after a failure. The audit fails if the list lost one of the best:
    behind the cut, beyond the margin or in elimination. Once that many failures are implausible at
    the accepted error, no list is cut any more in the run.

    Args:
        error: accepted share of lists that lose one of the best.

    Attributes:
        lists: number of lists so far.
        audits: number of audited lists among them.
        failures: number of audits that failed.
        ended: whether lists are cut no more.
    """

    def __init__(self, error: float) -> None:
        self._error = error
        self.lists: int = 0
        self.audits: int = 0
        self.failures: int = 0
        self.ended: bool = False
        self._more = 0  # lists to audit after a failure

    def due(self, ahead: int = 0) -> bool:
        """Whether a list is audited: the next one, or the one that many lists after it."""
        number = self.lists + ahead
        if self._more > ahead:
            return True
        return number % _EVERY == 0 if number > _EVERY else number & (number - 1) == 0

    def add(self, outcome: Outcome) -> None:
        """Count a list, and warn once too many have failed."""
        self.lists += 1
        if outcome == "followed":
            return
        self._more = _AFTER_FAILURE if outcome == "failed" else max(0, self._more - 1)
        self.audits += 1
        self.failures += outcome == "failed"
        if outcome == "failed" and not self.ended:
            self.ended = at_least(self.failures, self.audits, self._error) < _IMPLAUSIBLE
            if self.ended:
                logger.warning(
                    "%d of %d audited lists would have lost one of the best, more than an error of "
                    "%g explains: from here on every candidate is scored. Your images and texts "
                    "differ from those that the bundle's lists were measured on. Measure lists on "
                    "your own: dsd-trt imitate, then dsd-trt export --matrix",
                    *(self.failures, self.audits, self._error),
                )


def at_least(failures: int, trials: int, probability: float) -> float:
    """Exact probability of at least some failures in independent trials.

    Args:
        failures: number of trials that fail, at least.
        trials: number of all trials, failed or not.
        probability: probability of a failure in one trial, in (0, 1).
    """
    fewer = math.fsum(
        math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(i + 1)
            - math.lgamma(trials - i + 1)
            + i * math.log(probability)
            + (trials - i) * math.log1p(-probability)
        )
        for i in range(failures)
    )
    return max(0.0, 1 - fewer)


def _known(estimates: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Estimates with inf in place of NaN."""
    return np.where(np.isnan(estimates), np.inf, estimates).astype(np.float64)
