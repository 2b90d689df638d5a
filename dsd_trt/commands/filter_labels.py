"""Labels by which a filter measures its precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_trt.commands.log import say
from dsd_trt.commands.pairs import surveyed
from dsd_trt.errors import InputError, counted
from dsd_trt.pairs.choice import Choice, measured_precision
from dsd_trt.pairs.run import PairRun
from dsd_trt.pairs.survey import PairSurvey
from dsd_trt.pairs.table import TablePairs
from dsd_trt.tables.columns import ColumnNames
from dsd_trt.tables.table import Table


@dataclass(frozen=True)
class Labels:
    """Labels of some pairs.

    Attributes:
        survey: the pairs, those to filter or others.
        rows: rows that have a label, int64 (labels,).
        positive: their labels, bool (labels,).
    """

    survey: PairSurvey
    rows: NDArray[np.int64]
    positive: NDArray[np.bool_]

    @classmethod
    def read(
        cls,
        survey: PairSurvey,
        labelled: Path | None,
        columns: ColumnNames,
        images: Path | None,
    ) -> Labels | None:
        """Labels of another table, else of the pairs themselves; None if these have none.

        Args:
            survey: the pairs to filter.
            labelled: another table; None takes the labels of the pairs' own table.
            columns: names of the columns, of both tables.
            images: where the images are, of both tables, as for `NamedImages`.

        Raises:
            InputError: a table has no labels where it must, or a value that is no label.
        """
        if labelled is not None:
            table = Table.open(labelled)
            column = columns.required(table, "label")
            survey = surveyed(TablePairs(table, columns, images))
        elif survey.source.table is None:
            return None
        else:
            table = survey.source.table
            if (own := columns.optional(table, "label")) is None:
                return None
            column = own
        rows, positive = list[int](), list[bool]()
        for number, row in enumerate(table.rows([column])):
            if row.error is not None or survey.image_of[number] < 0:
                continue
            try:
                label = row.label(column)
            except ValueError as error:
                raise table.fault(row, error) from None
            if label is not None:
                rows.append(number)
                positive.append(label)
        if not rows and labelled is not None:
            raise InputError(f"{labelled} has no row with a label, 1 or 0")
        if not rows:
            return None
        if all(positive):
            say(
                f"warning: all {counted(len(rows), 'label')} are positive: they show a precision "
                "only if the pairs that have them were taken at random, negatives included"
            )
        return cls(survey, np.array(rows, np.int64), np.array(positive, np.bool_))

    def choose(self, run: PairRun, labelled: PairRun, precision: float) -> Choice:
        """The pairs of a run above the threshold that reaches a precision on these labels.

        Args:
            run: the pairs to filter, scored.
            labelled: the labelled pairs, scored.
            precision: precision to reach, in (0, 1).

        Raises:
            InputError: no threshold reaches it.
        """
        scores = labelled.scores[self.rows]
        there = ~np.isnan(scores)
        images = self.survey.image_of[self.rows][there].tolist()
        positive = self.positive[there].tolist()
        return measured_precision(run.scores, scores[there], positive, images, precision)
