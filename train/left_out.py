"""Questions that are left out because an image cannot be read or a score is not finite."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from dsd_trt.errors import InputError, counted
from dsd_trt.image.preprocess import ImageSource
from dsd_trt.image.stored import StoredImage
from dsd_trt.results import Failure
from dsd_trt.train.question import Question


def ignore(question: Question, failures: Sequence[Failure]) -> None:
    """A `Report` that does nothing; the question's scores are NaN."""


def refuse(question: Question, failures: Sequence[Failure]) -> NoReturn:
    """A `Report` that allows no question to be left out.

    Raises:
        InputError: always; the message names the first failure.
    """
    raise InputError(f"cannot use {failures[0] if failures else question.source}")


def name_image(image: ImageSource, question: Question) -> str:
    """Name of a question's image in reports: its path, or the question's source."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, StoredImage):
        return image.name
    return f"an image of {question.source}"


class LeftOut:
    """Number of questions left out, with the distinct failures that caused it.

    Attributes:
        questions: number of questions left out.
        failures: images, texts and pairs that failed, each once.
    """

    def __init__(self) -> None:
        self.questions: int = 0
        self._failures: dict[Failure, None] = {}

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Distinct failures, in order of their first report."""
        return tuple(self._failures)

    def add(self, question: Question, failures: Sequence[Failure]) -> None:
        """Add a question and its failures; a `Report`."""
        self.questions += 1
        self._failures |= dict.fromkeys(failures)

    def merge(self, questions: int, failures: Sequence[Failure]) -> None:
        """Add the questions and failures of another run.

        Args:
            questions: number of questions that the other run left out.
            failures: failures of the other run; duplicates are dropped.
        """
        self.questions += questions
        self._failures |= dict.fromkeys(failures)

    def to_plain(self) -> dict[str, Any]:
        """Fields for JSON: the number `left_out` and the list of objects `errors`."""
        return {
            "left_out": self.questions,
            "errors": [asdict(failure) for failure in self.failures],
        }

    def sentence(self) -> str:
        """Summary in one sentence, for the last line of a table."""
        images = sum(failure.text is None for failure in self.failures)
        others = len(self.failures) - images
        causes = [counted(images, "image")] if images or not others else []
        if others:
            causes.append(counted(others, "text or pair", "texts or pairs"))
        left_out = counted(self.questions, "question")
        return f"{left_out} left out, for {' and '.join(causes)} that failed"

    def lines(self) -> list[str]:
        """Summary and one line per failure; no lines if nothing was left out."""
        if not self.questions:
            return []
        return [self.sentence() + ":", *(f"  {failure}" for failure in self.failures)]

    def require_some(self, kept: int, what: str, others: int = 0) -> None:
        """Refuse a part of a data set of which every question was left out.

        Args:
            kept: number of the part's questions that were not left out.
            what: name of the part in the message, such as "test questions".
            others: number of questions left out that belong to other parts.

        Raises:
            InputError: no question of the part remains; the message names the first failures.
        """
        if kept or self.questions == others:
            return
        shown = "; ".join(map(str, self.failures[:3]))
        rest = len(self.failures) - 3
        more = f"; and {rest} more" if rest > 0 else ""
        raise InputError(
            f"{what}: none of {self.questions - others} can be used: {shown}{more}. "
            "Check the data set's images, and --root"
        )
