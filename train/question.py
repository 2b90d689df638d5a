"""What every data set is made of: candidates, image-text pairs, of which one is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dsd_trt.image.preprocess import ImageSource
from dsd_trt.results import Failure


@dataclass(frozen=True)
class Question:
    """Which of these pairs belong together?

    Given a text, the candidates are its pairs with several images; given an image, its pairs with
    several texts.

    Attributes:
        kind: what is asked, a row of the table: "subject", "binary", ...
        candidates: (image, text) pairs; the right one may stand anywhere.
        right: which candidate is the right one.
        source: what the question was made from, such as an image's name. Questions of one source
            never end up on both sides of a split, and item scores count a source as a whole.
    """

    kind: str
    candidates: tuple[tuple[ImageSource, str], ...]
    right: int
    source: str


def shuffled(
    kind: str,
    right: tuple[ImageSource, str],
    wrong: Iterable[tuple[ImageSource, str]],
    source: str,
    seed: Sequence[int],
) -> Question:
    """A question whose right candidate stands at a random place.

    Args:
        kind: as in `Question`.
        right: the right candidate.
        wrong: the others.
        source: as in `Question`.
        seed: names the place; a seed and the question's number, say.
    """
    candidates = list(wrong)
    place = int(np.random.default_rng(seed).integers(len(candidates) + 1))
    candidates.insert(place, right)
    return Question(kind, tuple(candidates), place, source)


def split(
    questions: Iterable[Question], fraction: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """Part questions into few-shot examples and a rest that shares no source with them.

    Args:
        questions: all of them.
        fraction: share of the sources that goes to the first part, in [0, 1]; at least one
            source does where it is above 0.
        seed: decides which.

    Returns:
        The few-shot part and the rest, each in the order of `questions`.
    """
    questions = list(questions)
    sources = sorted({question.source for question in questions})
    count = min(len(sources), max(1, round(fraction * len(sources)))) if fraction > 0 else 0
    order = np.random.default_rng(seed).permutation(len(sources))
    chosen = {sources[i] for i in order[:count]}
    return (
        [question for question in questions if question.source in chosen],
        [question for question in questions if question.source not in chosen],
    )


Report = Callable[[Question, Sequence[Failure]], None]
"""Called with a question that is left out, and with what of it failed."""


class Score(Protocol):
    """Scores the candidates of some questions; NaN where a question is left out."""

    def __call__(self, questions: Sequence[Question], left_out: Report = ...) -> list[list[float]]:
        """Score candidates.

        Args:
            questions: to be scored.
            left_out: told of each question that is left out, with what failed.
        """
        ...
