"""The same questions before and after training, and whether training made the answers worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsd_trt.bundle.method import Mode
from dsd_trt.errors import DsdError, InputError, counted
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.served import Served
from dsd_trt.train.scoring.adapter import Adapter

_ONE_ERROR, _TWO_ERRORS = 0.159, 0.023  # of a normal distribution lies beyond one side


class WorseError(DsdError):
    """Training ended, but its adapter answers fewer questions right than what it began with."""

    exit_code = 1


@dataclass(frozen=True)
class Comparison:
    """Answers to the same questions before and after training, once per trained mode.

    Attributes:
        held_out: whether nothing was learned from the questions.
        before: whether each question was answered right by what training began with.
        after: whether each question is answered right by the trained adapter.
    """

    held_out: bool
    before: tuple[bool, ...]
    after: tuple[bool, ...]

    @property
    def gained(self) -> int:
        """Questions that only the trained adapter answers right."""
        return sum(b < a for b, a in zip(self.before, self.after, strict=True))

    @property
    def lost(self) -> int:
        """Questions that only what training began with answers right."""
        return sum(b > a for b, a in zip(self.before, self.after, strict=True))

    @property
    def standard_error(self) -> float:
        """Standard error of the paired difference, in answers.

        Only the questions whose answers differ tell anything: if training made no difference,
        losses minus gains would have mean 0 and variance losses plus gains (McNemar's test). If
        none differ, the next one still could: it counts as one.
        """
        return math.sqrt(max(self.lost + self.gained, 1))

    @property
    def worse(self) -> bool:
        """Whether the adapter is worse by more than a standard error, counted exactly.

        Of a handful of answers, two lost are more than their standard error, and yet as frequent
        by chance as two heads in two throws. So chance alone must lose as many in less than 16 %,
        as much as lies beyond one standard error if the answers are many.
        """
        return by_chance(self.lost, self.gained) < _ONE_ERROR

    @property
    def telling(self) -> int:
        """Smallest difference beyond two standard errors, in answers; a smaller one may be chance.

        If training made no difference, chance alone reaches it in one of twenty trainings or so.
        """
        return math.floor(2 * self.standard_error) + 1

    @property
    def decided(self) -> bool:
        """Whether the difference is beyond two standard errors."""
        return abs(self.gained - self.lost) >= self.telling

    @property
    def same(self) -> bool:
        """Whether no answer changed."""
        return self.before == self.after

    def line(self) -> str:
        """The comparison in one line, for the user, and what it tells."""
        what = "validation questions" if self.held_out else "questions it learned from"
        count = len(self.after)
        changes = f"{self.gained} gained, {self.lost} lost" if not self.same else "none changed"
        if self.held_out:
            told = f"Of {counted(count, 'answer')}, a difference below {self.telling} may be chance"
            if not self.same:
                told += ", and this one is larger" if self.decided else ", this one included"
        else:
            told = "How it answers other questions, these do not tell"
        return (
            f"{what} answered right: {sum(self.before)} of {count} before "
            f"({sum(self.before) / count:.1%}), {sum(self.after)} after "
            f"({sum(self.after) / count:.1%}); {changes}. {told}"
        )

    def to_plain(self) -> dict[str, Any]:
        """The answers and what they tell, as JSON takes them."""
        return {
            **asdict(self),
            "gained": self.gained,
            "lost": self.lost,
            "standard_error": self.standard_error,
            "telling": self.telling,
            "decided": self.decided,
        }


def by_chance(lost: int, gained: int) -> float:
    """Probability that chance alone loses as many of the changed answers or more (sign test).

    If training made no difference, each changed answer is a loss or a gain with probability 1/2.
    """
    changed = lost + gained
    return sum(math.comb(changed, k) for k in range(lost, changed + 1)) / 2**changed


def clearly_worse(after: Sequence[bool], before: Sequence[bool]) -> bool:
    """Whether some answers are worse than others to the same questions by two standard errors."""
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    gained = sum(b < a for b, a in zip(before, after, strict=True))
    return by_chance(lost, gained) < _TWO_ERRORS


def compare(
    checkpoint: Checkpoint,
    before: Adapter | None,
    after: Adapter,
    examples: Examples,
    modes: Sequence[Mode],
    *,
    held_out: bool,
) -> Comparison:
    """Answer questions with two adapters, each as it would be served.

    Args:
        checkpoint: base model of both adapters, on the device that scores.
        before: adapter that training began with; None for the zero-shot score.
        after: adapter that training ended with.
        examples: encoded questions to answer.
        modes: modes the adapter was trained for.
        held_out: whether nothing was learned from the questions.
    """
    answers: list[list[bool]] = [[], []]
    for mode in modes:
        for found, adapter in zip(answers, (before, after), strict=True):
            try:
                served = Served(checkpoint, adapter, examples.unconditional, mode=mode)
            except InputError:  # what training began with does not have this mode
                served = Served(checkpoint, None, examples.unconditional, mode=mode)
            found += examples.right_answers(served.score(examples))
    return Comparison(held_out, *map(tuple, answers))
