"""Questions, the common form of all data sets: candidate image-text pairs, one of them right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from dsd_trt.image.preprocess import ImageSource
    from dsd_trt.results import Failure


@dataclass(frozen=True)
class Question:
    """A question: which of these image-text pairs is the positive one?

    The candidates pair one text with several images, or one image with several texts.

    Attributes:
        kind: kind of question, which has a row of its own in tables, such as "subject". Kinds
            "GROUP: KIND", such as "predicate: above", also have a row for their group. A data set
            whose kinds are exactly "text" and "image" is measured by items, as Winoground is:
            by text, image and group score of its sources.
        candidates: (image, text) pairs, in any order.
        right: index of the right candidate, the positive pair.
        source: name of the item the question was made from, such as an image. Questions of one
            source stay on one side of a split, and item scores count a source as a whole.
        drawn: whether its negatives are texts of other questions. They are then drawn again when
            questions are divided, so that the parts share none; see `draw_negatives`.
    """

    kind: str
    candidates: tuple[tuple[ImageSource, str], ...]
    right: int
    source: str
    drawn: bool = False


def shuffled(
    kind: str,
    right: tuple[ImageSource, str],
    wrong: Iterable[tuple[ImageSource, str]],
    source: str,
    seed: Sequence[int],
) -> Question:
    """A question whose right candidate is at a random index.

    Args:
        kind: kind of question, see `Question`.
        right: right candidate, the positive pair.
        wrong: other candidates, the negative pairs.
        source: name of the item the question was made from, see `Question`.
        seed: random seed of the index, such as a data set's seed and the question's number.
    """
    candidates = list(wrong)
    place = int(np.random.default_rng(seed).integers(len(candidates) + 1))
    candidates.insert(place, right)
    return Question(kind, tuple(candidates), place, source)


def split(
    questions: Iterable[Question], fraction: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """Split questions into two parts that share no source.

    Args:
        questions: questions to split, in any order.
        fraction: share of the sources in the first part, in [0, 1]; above 0 it takes at least
            one source.
        seed: random seed of the choice of sources.

    Returns:
        The first part and the rest, each in the order of `questions`.
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


Report = Callable[[Question, Sequence["Failure"]], None]
"""Callback `(question, failures)` for each question that is left out."""


class Score(Protocol):
    """A scorer of questions' candidates; NaN for a question that is left out."""

    def __call__(self, questions: Sequence[Question], left_out: Report = ...) -> list[list[float]]:
        """Score the candidates of some questions.

        Args:
            questions: questions whose candidates are scored.
            left_out: callback for each question left out, with its failures.

        Returns:
            One score per candidate of each question; NaN for all candidates of a question left
            out.
        """
        ...
