"""Confusions of an evaluation: which wrong text was chosen instead of the right one, how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dsd_trt.commands.figures import markdown
from dsd_trt.errors import cut
from dsd_trt.train.evaluation.answers import Answer
from dsd_trt.train.question import Question

SHOWN, LISTED = 10, 30
"""Most frequent confusions that a table shows, and that pages and JSON have."""

_LONGEST = 60  # characters of a text in a table


@dataclass(frozen=True)
class Confusion:
    """A wrong text that was chosen.

    Attributes:
        right: text that would have been right.
        chosen: text that was chosen instead.
        times: number of questions in which it was.
    """

    right: str
    chosen: str
    times: int


class AskedTexts:
    """The texts of questions, noted as they are asked."""

    def __init__(self) -> None:
        self._noted: list[tuple[tuple[str, ...], int]] = []

    def through(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The questions, each noted."""
        for question in questions:
            self._noted.append((tuple(text for _, text in question.candidates), question.right))
            yield question

    def confusions(self, answers: Sequence[Answer]) -> list[Confusion]:
        """Confusions of the questions, see `confusions`.

        Args:
            answers: answers to the questions, in their order.
        """
        return confusions(self._noted, answers)


def confusions(
    asked: Iterable[tuple[Sequence[str], int]], answers: Iterable[Answer]
) -> list[Confusion]:
    """Count which wrong text won, the most frequent first.

    Of a tie, it is one of those that tied. Questions whose candidates share one text, and differ
    in their images, have no confusions.

    Args:
        asked: texts of each question's candidates, and the index of the right one.
        answers: answers to the questions, in their order.
    """
    found = Counter(
        (texts[right], texts[answer.chosen])
        for (texts, right), answer in zip(asked, answers, strict=True)
        if answer.rank not in (None, 1)
        and answer.chosen is not None
        and texts[answer.chosen] != texts[right]
    )
    return [Confusion(*texts, times) for texts, times in found.most_common()]


def confusion_table(found: Sequence[Confusion]) -> str:
    """The most frequent confusions as a Markdown table; "" if there are none."""
    if not found:
        return ""
    rows = [[_cell(it.right), _cell(it.chosen), str(it.times)] for it in found[:SHOWN]]
    table = markdown(["right text", "chosen instead", "times"], rows)
    more = len(found) - len(rows)
    return table + (f"\n{more} more, as often or less.\n" if more > 0 else "")


def _cell(text: str) -> str:
    return cut(" ".join(text.split()), _LONGEST).replace("|", "\\|")
