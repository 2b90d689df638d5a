"""Lists of synthetic candidates: scores at noise levels, and estimates of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.lists import Measured
from dsd_trt.lists import OF_LIST, OF_MARGIN, Rule, gap_of, need_of

LEVELS = 4
COUNT = 60  # candidates of a list
SLOPE = 0.05

Floats = NDArray[np.float64]


@dataclass
class Candidates:
    """One list: scores by candidate and level, estimates, and how many scores were asked for."""

    scores: Floats
    estimates: Floats
    asked: int = 0

    def __call__(self, candidates: NDArray[np.intp], level: int) -> Floats:
        self.asked += len(candidates)
        return self.scores[candidates, level]

    def best(self, count: int) -> NDArray[np.intp]:
        """The best candidates of the full computation."""
        return np.argsort(-self.scores.mean(axis=1), kind="stable")[:count]

    def need(self, best: int) -> float:
        """The need that an export would measure."""
        first = self.scores[:, 0]
        return need_of(self.estimates, first, self.best(best), best, SLOPE, COUNT)


def draw(rng: np.random.Generator, lists: int) -> Iterator[Candidates]:
    """Lists of candidates whose estimates are their scores and noise of half their spread."""
    for _ in range(lists):
        means = rng.normal(size=(COUNT, 1))
        scores = means + 0.02 * rng.normal(size=(COUNT, LEVELS))
        yield Candidates(scores, means[:, 0] + 0.5 * rng.normal(size=COUNT))


def measured(rng: np.random.Generator, lists: int, best: int) -> Measured:
    """Needs of such lists, as a bundle has them."""
    drawn = list(draw(rng, lists))
    needs = sorted(it.need(best) for it in drawn)[:64]
    gaps = sorted((gap_of(it.scores[:, 0], it.best(best), best) for it in drawn), reverse=True)
    return Measured(lists, tuple(it for it in needs if np.isfinite(it)), tuple(gaps[:64]))


def rule_of(measured: Measured, best: int, error: float) -> Rule:
    """The rule of measured lists at an error."""
    bound, margin = measured.bound(OF_LIST * error), measured.margin(OF_MARGIN * error)
    return Rule(best, bound, SLOPE, COUNT, margin)
