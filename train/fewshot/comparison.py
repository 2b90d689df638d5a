"""The same questions before and after training, and what their answers tell (a sign test)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsd_trt.bundle.method import Mode
from dsd_trt.errors import DsdError, InputError, counted
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.served import Served
from dsd_trt.train.scoring.adapter import Adapter

_ONE_ERROR, _TWO_ERRORS = 0.159, 0.023  # of a normal law lies so far beyond one of its sides
_FEWEST = 6  # changed answers that can be beyond two errors: 1 of 64 is, 1 of 32 is not


class WorseError(DsdError):
    """Training ended, but its adapter answers fewer questions right than what it began with."""

    exit_code = 1


@dataclass(frozen=True)
class Comparison:
    """Answers to the same questions before and after training.

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
    def worse(self) -> bool:
        """Whether the adapter is worse by more than a standard error.

        Two lost of two are not: chance alone loses both in one of four trainings.
        """
        return by_chance(self.lost, self.gained) < _ONE_ERROR

    @property
    def clearly_worse(self) -> bool:
        """Whether the adapter is worse by more than two standard errors."""
        return by_chance(self.lost, self.gained) < _TWO_ERRORS

    @property
    def chance(self) -> float:
        """Probability that chance alone changes as many answers to the better side, or the worse.

        That of the side with more changes: 1 of 64 for six lost of six, and 1 if none changed.
        """
        return by_chance(max(self.lost, self.gained), min(self.lost, self.gained))

    @property
    def decided(self) -> bool:
        """Whether the adapter is better or worse by more than two standard errors."""
        return self.chance < _TWO_ERRORS

    @property
    def telling(self) -> int:
        """Smallest difference in answers that decides; a smaller one may be chance.

        It is that of as many changed answers, or of the fewest that can decide anything.
        """
        changed = max(self.lost + self.gained, _FEWEST)
        more = bisect_left(
            range(changed + 1),
            True,
            key=lambda count: by_chance(count, changed - count) < _TWO_ERRORS,
        )
        return 2 * more - changed

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
            if self.telling > count:
                told = f"Of {counted(count, 'answer')}, any difference may be chance"
            elif not self.same:
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
            "by_chance": self.chance,
            "telling": self.telling,
            "decided": self.decided,
        }


def by_chance(most: int, others: int) -> float:
    """Probability that chance alone puts as many of the changed answers on one side, or more.

    If training made no difference, each changed answer is a loss or a gain with probability 1/2
    (sign test, exact). Equal answers tell nothing.

    Args:
        most: changed answers on that side, such as those lost.
        others: changed answers on the other side.
    """
    changed = most + others
    ways, total = math.comb(changed, most), 0
    for count in range(most, changed + 1):
        total += ways
        ways = ways * (changed - count) // (count + 1)  # of count + 1 answers
    return total / 2**changed


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
        modes: modes the adapter was trained for; a right answer is right in each of them.
        held_out: whether nothing was learned from the questions.
    """
    answers = []
    for adapter in (before, after):
        scores = []
        for mode in modes:
            try:
                served = Served(checkpoint, adapter, examples.unconditional, mode=mode)
            except InputError:  # what training began with does not have this mode
                served = Served(checkpoint, None, examples.unconditional, mode=mode)
            scores.append(served.score(examples))
        answers.append(examples.right_answers(*scores))
    return Comparison(held_out, *answers)
