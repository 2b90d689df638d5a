"""Scored pairs of which a choice is kept, as records and tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dsd_trt.commands.formats import FORMATS, AtEnd
from dsd_trt.commands.layout import NUMBERS, Layout
from dsd_trt.commands.origin import Origin
from dsd_trt.commands.output import Record, shortest, write_output, write_standard_output
from dsd_trt.errors import InputError
from dsd_trt.pairs.choice import Choice
from dsd_trt.pairs.run import PairRun

if TYPE_CHECKING:
    pass

KEPT, DROPPED = NUMBERS, (*NUMBERS, "reason")
_ROWS = 1024  # of a table that are in memory at a time


@dataclass(frozen=True)
class Filtered:
    """A run whose pairs are all scored, and the choice among them.

    Attributes:
        run: run of the source's pairs.
        choice: which of its pairs are kept.
    """

    run: PairRun
    choice: Choice

    def records(self, *, kept: bool) -> Iterator[Record]:
        """Records of the kept rows, or of the dropped ones, in their order."""
        survey = self.run.survey
        rows = survey.source.rows()
        for start in range(0, survey.count, _ROWS):
            part = range(start, min(start + _ROWS, survey.count))
            probabilities = self.run.probabilities(part)
            for number, probability in zip(part, probabilities, strict=True):
                if (row := next(rows, None)) is None:
                    raise InputError(f"{survey.source.name} was changed while it was read")
                if bool(self.choice.kept[number]) != kept:
                    continue
                image, text = survey.source.shown(row)
                error = self.run.error(number)
                yield Record(
                    image,
                    text,
                    shortest(self.run.scores[number]),
                    None if np.isnan(probability) else shortest(probability),
                    error,
                    None if kept else self.reason(number),
                    row,
                )

    def reason(self, number: int) -> str:
        """Why a row is dropped."""
        error = self.run.error(number)
        return self.choice.reason if error is None else f"cannot be scored: {error}"

    def write_table(self, output: str, form: str, *, kept: bool) -> None:
        """Write the kept rows, or the dropped ones, whole or not at all.

        Raises:
            DsdError: the disk is full or cannot be written to.
        """
        layout = Layout.passing(self.run.survey.source, KEPT if kept else DROPPED)
        records, written = self.records(kept=kept), FORMATS[form]
        if isinstance(written, AtEnd):
            written.write(output, records, Origin(layout))
            return
        lines = itertools.chain([written.header(layout)], written.lines(records, layout))
        if output != "-":
            write_output(output, lines)
            return
        for line in lines:
            write_standard_output(line)
