"""Records of scored pairs, one after another as they are scored, and where they go."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dsd_trt.commands.inputs import Pair
from dsd_trt.commands.output import (
    LineFile,
    Record,
    json_parts,
    to_records,
    top_texts,
    write_output,
)
from dsd_trt.commands.parquet import write_parquet
from dsd_trt.jobs import Scorable
from dsd_trt.journal import Journal
from dsd_trt.results import Failure, Progress
from dsd_trt.scorer import Scorer


class MatrixRecords:
    """Records of every image against every text, an image at a time.

    Args:
        scorer: scores them.
        images: the rows.
        texts: the columns.
        levels: as for `Scorer.score`.
        progress: as for `Scorer.score`.
        journal: as for `Scorer.stream`.
        top_k: how many of the best texts of each image are wanted; None is all.
        prune: whether a text that can no longer be among the `top_k` is dropped early.

    Attributes:
        texts: the columns.
        errors: what could not be scored so far.
        images: how many there were so far.
        scored: records so far, those that are not wanted included.
        passes: (image, text, level) triples that were scored.
        first: scores of the images, where `prune` is set.
    """

    def __init__(
        self,
        scorer: Scorer,
        images: Sequence[Scorable],
        texts: Sequence[str],
        levels: Sequence[float] | None,
        progress: Progress | None,
        journal: Journal | None,
        top_k: int | None,
        prune: bool,
    ) -> None:
        self._scorer, self._top_k, self._prune, self.texts = scorer, top_k, prune, texts
        searched = top_k if prune else None
        self._stream = scorer.stream(images, texts, levels, progress, searched, journal)
        self.errors: list[Failure] = list(self._stream.errors)
        self.images = self.scored = self.passes = 0
        self.first: list[NDArray[np.float32]] = []

    def __iter__(self) -> Iterator[list[Record]]:
        """The records of each image."""
        for image in self._stream.images:
            self.errors += image.errors
            self.images += 1
            self.passes += image.passes
            if self._prune:
                self.first.append(image.scores)
            probabilities = self._scorer.probability(image.scores)
            pairs = [(image.image, text) for text in self.texts]
            records = to_records(pairs, image.scores, probabilities)
            self.scored += len(records)
            yield top_texts(records, self._top_k) if self._top_k else records


class PairRecords:
    """Records of chosen pairs in their order, as far as all pairs before are scored.

    Args:
        scorer: scores them.
        pairs: images and texts.
        levels: as for `Scorer.score`.
        progress: as for `Scorer.score`.
        journal: as for `Scorer.stream`.
        top_k: how many of the best texts of each image are wanted; None is all.

    Attributes:
        errors: what could not be scored so far.
        scored: records so far, those that are not wanted included.
    """

    def __init__(
        self,
        scorer: Scorer,
        pairs: Sequence[Pair],
        levels: Sequence[float] | None,
        progress: Progress | None,
        journal: Journal | None,
        top_k: int | None,
    ) -> None:
        self._scorer, self._top_k, self._pairs = scorer, top_k, pairs
        chosen = [(pair.image, pair.text) for pair in pairs]
        self._stream = scorer.stream_pairs(chosen, levels, progress, journal)
        self.errors: list[Failure] = list(self._stream.errors)
        self.scored = 0

    def __iter__(self) -> Iterator[list[Record]]:
        """The records of some pairs after another; all at once where the best are wanted."""
        if self._top_k:
            every = [record for some in self._in_order() for record in some]
            yield top_texts(every, self._top_k)
        else:
            yield from self._in_order()

    def _in_order(self) -> Iterator[list[Record]]:
        scores = np.full(len(self._pairs), np.nan, np.float32)
        there = np.zeros(len(self._pairs) + 1, np.bool_)  # and an end that never is
        given = 0
        for image, places in self._stream.images:
            self.errors += image.errors
            scores[places], there[places] = image.scores, True
            start = given
            while there[given]:
                given += 1
            some = scores[start:given]
            names = [(pair.name, pair.text) for pair in self._pairs[start:given]]
            records = to_records(names, some, self._scorer.probability(some))
            self.scored += len(records)
            yield records


def write_records(
    records: MatrixRecords | PairRecords, output: str, form: str, *, matrix: bool, goes_on: bool
) -> None:
    """Write records: JSONL and CSV as they come, other formats at the end and whole.

    Args:
        records: are scored on being asked for.
        output: a file, or - for standard output.
        form: "table", "json", "jsonl", "csv" or "parquet".
        matrix: whether a table may be laid out as a grid.
        goes_on: whether the file may begin with these records already.

    Raises:
        DsdError: the disk is full, or the like.
    """
    if form in ("jsonl", "csv"):
        file = LineFile(output, form, goes_on=goes_on)
        try:
            for some in records:
                file.add(some)
            file.finish()
        finally:
            file.close()
        return
    every = (record for some in records for record in some)
    if form == "json":
        write_output(output, json_parts(every))
        return
    if form == "parquet":
        write_parquet(output, every)
        return
    from dsd_trt.commands.table import to_table

    width = shutil.get_terminal_size((100, 24)).columns if output == "-" else 100
    color = output == "-" and sys.stdout.isatty()
    table = to_table(list(every), matrix=matrix, width=width, color=color)
    write_output(output, [table])
