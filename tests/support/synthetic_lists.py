"""Lists of synthetic candidates: scores at noise levels, and estimates of them of any quality."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.lists import Measured
from dsd_trt.lists import Rule, need_of

LEVELS = 4
COUNT = 60  # candidates of a list
SLOPE = 0.05

Floats = NDArray[np.float64]


@dataclass
class Candidates:
    """One list: scores by candidate and level, estimates, and the scores that were asked for."""

    scores: Floats
    estimates: Floats
    asked: int = 0

    def __call__(self, candidates: NDArray[np.intp], level: int) -> Floats:
        self.asked += len(candidates)
        return self.scores[candidates, level]

    @property
    def means(self) -> Floats:
        """Scores over all levels, of the full computation."""
        mean: Floats = self.scores.mean(axis=1)
        return mean

    def best(self, count: int) -> NDArray[np.intp]:
        """The best candidates of the full computation."""
        return np.argsort(-self.means, kind="stable")[:count]

    def need(self, best: int) -> float:
        """What the exporter measures."""
        winners = self.best(best)
        return need_of(self.estimates, self.scores[:, 0], winners, best, SLOPE, COUNT)


def draw(rng: np.random.Generator, lists: int, noise: float = 0.5) -> Iterator[Candidates]:
    """Lists of candidates whose estimates are their scores and some noise."""
    for _ in range(lists):
        means = rng.normal(size=(COUNT, 1))
        scores = means + 0.02 * rng.normal(size=(COUNT, LEVELS))
        yield Candidates(scores, means[:, 0] + noise * rng.normal(size=COUNT))


def measured(rng: np.random.Generator, lists: int, best: int) -> Measured:
    """Needs of such lists, as a bundle has them."""
    needs = sorted(it.need(best) for it in draw(rng, lists))
    return Measured(lists, tuple(it for it in needs[:64] if np.isfinite(it)))


def rule(rng: np.random.Generator, best: int, **changed: Any) -> Any:
    """Function of an error that gives the rule of 1,000 measured lists."""
    it = measured(rng, 1000, best)
    return lambda error: Rule(best, it.bound(error), SLOPE, COUNT, **changed)
