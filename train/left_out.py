"""Questions that are left out: an image of theirs cannot be read, or something has no number."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from dsd_trt.errors import InputError
from dsd_trt.image.preprocess import ImageSource
from dsd_trt.results import Failure
from dsd_trt.train.question import Question


def ignore(question: Question, failures: Sequence[Failure]) -> None:
    """A `Report` for those who look at the scores alone."""


def refuse(question: Question, failures: Sequence[Failure]) -> NoReturn:
    """A `Report` for those who want all questions or none.

    Raises:
        InputError: names the first failure.
    """
    raise InputError(f"cannot use {failures[0] if failures else question.source}")


def name_image(image: ImageSource, question: Question) -> str:
    """What reports call an image of a question."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return f"an image of {question.source}"


class LeftOut:
    """Count of questions that are left out, and every failure once.

    Attributes:
        questions: how many were left out.
        failures: images, texts and pairs that are to blame.
    """

    def __init__(self) -> None:
        self.questions = 0
        self._failures: dict[Failure, None] = {}

    @property
    def failures(self) -> tuple[Failure, ...]:
        """In the order they were met."""
        return tuple(self._failures)

    def add(self, question: Question, failures: Sequence[Failure]) -> None:
        """Note a question; a `Report`."""
        self.questions += 1
        self._failures |= dict.fromkeys(failures)

    def merge(self, questions: int, failures: Sequence[Failure]) -> None:
        """Note what another run has left out."""
        self.questions += questions
        self._failures |= dict.fromkeys(failures)

    def to_plain(self) -> dict[str, Any]:
        """For JSON: `left_out`, the count, and `errors`, a list of objects."""
        return {
            "left_out": self.questions,
            "errors": [asdict(failure) for failure in self.failures],
        }

    def sentence(self) -> str:
        """The count, for a table's last line."""
        images = sum(failure.text is None for failure in self.failures)
        others = len(self.failures) - images
        causes = [f"{images} images"] if images or not others else []
        causes += [f"{others} texts or pairs"] if others else []
        return f"{self.questions} questions left out, for {' and '.join(causes)} that failed"

    def lines(self) -> list[str]:
        """The count and every failure, a line each; none if nothing was left out."""
        if not self.questions:
            return []
        return [self.sentence() + ":", *(f"  {failure}" for failure in self.failures)]

    def require_some(self, kept: int, what: str, others: int = 0) -> None:
        """Refuse to go on with nothing.

        Args:
            kept: how many questions were not left out.
            what: they are, such as "test questions".
            others: how many were left out that are none of them.

        Raises:
            InputError: names the first failures.
        """
        if kept or self.questions == others:
            return
        shown = "; ".join(map(str, self.failures[:3]))
        rest = len(self.failures) - 3
        more = f"; and {rest} more" if rest > 0 else ""
        raise InputError(
            f"none of the {self.questions - others} {what} can be used: {shown}{more}. "
            "Check the data set's images, and --root"
        )
