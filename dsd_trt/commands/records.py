"""Records of scored pairs, yielded as scores arrive, and written to the output."""

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
    """Records of every image against every text, one image at a time.

    Args:
        scorer: scorer that computes the scores.
        images: images to score, one row each.
        texts: texts to score, one column each.
        levels: noise levels to average over; None is all of the bundle's.
        progress: callback `(done, total)`, in pairs.
        journal: record of the scores so far, as for `Scorer.stream`.
        top_k: number of best texts to yield per image; None is all.
        prune: whether to stop scoring a text once it can no longer reach the top K.

    Attributes:
        texts: texts to score, one column each.
        errors: images, texts and pairs that could not be scored so far.
        images: number of images scored so far.
        scored: number of pairs scored so far, including those not among the `top_k`.
        passes: number of passes so far, each of one image, one text and one noise level.
        first: scores per image, (texts,) each, collected only with `prune`.
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
        """Yield the records of each image."""
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
    """Records of given pairs in their order, each once all earlier pairs are scored.

    Args:
        scorer: scorer that computes the scores.
        pairs: images and texts from a pairs file.
        levels: noise levels to average over; None is all of the bundle's.
        progress: callback `(done, total)`, in pairs.
        journal: record of the scores so far, as for `Scorer.stream`.
        top_k: number of best texts to yield per image; None is all.

    Attributes:
        errors: images, texts and pairs that could not be scored so far.
        scored: number of pairs scored so far, including those not among the `top_k`.
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
        """Yield the records of consecutive pairs; all at once if `top_k` is given."""
        if self._top_k:
            every = [record for some in self._in_order() for record in some]
            yield top_texts(every, self._top_k)
        else:
            yield from self._in_order()

    def _in_order(self) -> Iterator[list[Record]]:
        scores = np.full(len(self._pairs), np.nan, np.float32)
        there = np.zeros(len(self._pairs) + 1, np.bool_)  # sentinel that ends the last group
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
    """Write records: JSONL and CSV as scores arrive, other formats atomically at the end.

    Args:
        records: records, scored while they are iterated over.
        output: path of a file, or "-" for standard output.
        form: "table", "json", "jsonl", "csv" or "parquet".
        matrix: whether a table may be laid out as a grid of images and texts.
        goes_on: whether the file may already begin with these records.

    Raises:
        DsdError: the disk is full or cannot be written to.
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
