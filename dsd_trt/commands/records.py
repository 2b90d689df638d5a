"""Records of scored pairs, yielded as scores arrive, and written to the output."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dsd_trt.commands.formats import FORMATS, Streamed
from dsd_trt.commands.layout import MATRIX, PAIRS, WORDS, Layout, with_words
from dsd_trt.commands.origin import Origin
from dsd_trt.commands.output import LineFile, Record, shortest, top_texts
from dsd_trt.errors import InputError, cut
from dsd_trt.image.files import printable
from dsd_trt.jobs import Scorable
from dsd_trt.journal import Journal
from dsd_trt.match_probability import match_probability
from dsd_trt.pairs.run import PairRun
from dsd_trt.pruned_search import ERROR
from dsd_trt.ranking import BestImages
from dsd_trt.results import Failure, Progress, ScoredImage
from dsd_trt.scorer import Scorer
from dsd_trt.tables.parquet import ArrowValues
from dsd_trt.tables.row import TableRow
from dsd_trt.words import Word, scored_words

By = Literal["image", "text"]

SHOWN_ERRORS = 20
"""Rows that could not be scored which a command lists; all of them are in the output."""

_ROWS = 1024  # of a table that are in memory at a time


def to_records(
    pairs: Iterable[tuple[str, str]],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    places: Iterable[int],
    words: Sequence[tuple[Word, ...] | None] | None = None,
) -> list[Record]:
    """Records of all pairs that have a score.

    Args:
        pairs: image and text of each score, in order.
        scores: scores of any shape, NaN for pairs without one.
        probabilities: match probabilities, of the same shape; NaN where there are none.
        places: number of each score's image among those given.
        words: words of each pair's text with their scores; None if they were not asked for.
    """
    of_pairs = itertools.repeat(None, scores.size) if words is None else words
    return [
        Record(
            printable(image),
            text,
            shortest(score),
            None if np.isnan(probability) else shortest(probability),
            place=place,
            words=of_pair,
        )
        for (image, text), score, probability, place, of_pair in zip(
            pairs, scores.ravel(), probabilities.ravel(), places, of_pairs, strict=True
        )
        if not np.isnan(score)
    ]


class GridRecords:
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
        by: "image", or "text" for the `top_k` best images of each text, all at the end.
        error: accepted probability that an image loses one of its best texts, with `prune`.
        tokens: whether records have the words of their texts; not with `prune` or by "text".

    Attributes:
        layout: columns of the output.
        texts: texts to score, one column each.
        errors: images, texts and pairs that could not be scored so far.
        images: number of images scored so far.
        scored: number of pairs scored so far, including those not among the `top_k`.
        passes: number of scores at single noise levels so far: passes in pair mode, and walks that
            made lists.
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
        by: By = "image",
        error: float = ERROR,
        *,
        tokens: bool = False,
    ) -> None:
        self._top_k, self._prune, self._by = top_k, prune, by
        self.texts: Sequence[str] = texts
        searched = top_k if prune else None
        self.layout = with_words(MATRIX) if tokens else MATRIX
        self._words = [scorer.words(text) for text in texts] if tokens else None
        self._stream = scorer.stream(
            images, texts, levels, progress, searched, journal, error=error, tokens=tokens
        )
        self._calibration = scorer.calibration(levels)
        self.errors: list[Failure] = list(self._stream.errors)
        self.images: int = 0
        self.scored: int = 0
        self.passes: int = 0
        self.first: list[NDArray[np.float32]] = []

    def __iter__(self) -> Iterator[list[Record]]:
        """Yield the records of each image, or of each text."""
        if self._by == "text":
            yield from self._of_texts()
            return
        for image in self._scored():
            if self._prune:
                self.first.append(image.scores)
            probabilities = match_probability(image.scores, self._calibration)
            pairs = [(image.image, text) for text in self.texts]
            words = None
            if self._words is not None and image.tokens is not None:
                rows = zip(self._words, image.tokens, strict=True)
                words = [scored_words(of_text, scores) for of_text, scores in rows]
            places = [self.images - 1] * len(pairs)
            records = to_records(pairs, image.scores, probabilities, places, words)
            self.scored += len(records)
            yield top_texts(records, self._top_k) if self._top_k else records

    def _scored(self) -> Iterator[ScoredImage]:
        for image in self._stream.images:
            self.errors += image.errors
            self.images += 1
            self.passes += image.passes
            yield image

    def _of_texts(self) -> Iterator[list[Record]]:
        """The best images of each text, in memory that does not grow with the images."""
        best = BestImages(len(self.texts), self._top_k)
        for image in self._scored():
            self.scored += int(np.count_nonzero(~np.isnan(image.scores)))
            best.add(image.image, image.scores)
        for text, found in zip(self.texts, best.rankings(), strict=True):
            scores = np.array([score for *_, score in found], np.float32)
            pairs = [(name, text) for _, name, _ in found]
            places = [place for place, *_ in found]
            probabilities = match_probability(scores, self._calibration)
            yield to_records(pairs, scores, probabilities, places)


class PairRecords:
    """Records of the pairs of a source, one per row, in their order.

    Args:
        run: the run that scores the pairs.
        top_k: number of best texts to yield per image; None is every row.
        by: "image", or "text" for the `top_k` best images of each text.

    Attributes:
        layout: columns of the output.
        run: the run that scores the pairs.
        errors: the first rows that could not be scored.
    """

    def __init__(self, run: PairRun, top_k: int | None = None, by: By = "image") -> None:
        self.run: PairRun = run
        self._top_k, self._by = top_k, by
        added = (*PAIRS, WORDS) if run.tokens else PAIRS
        self.layout: Layout = Layout.passing(run.survey.source, added)
        self.errors: list[Failure] = []

    @property
    def scored(self) -> int:
        """Number of distinct pairs scored so far, including those not among the `top_k`."""
        return self.run.computed

    def __iter__(self) -> Iterator[list[Record]]:
        """Yield the records of consecutive rows; all at once if `top_k` is given."""
        if self._top_k:
            yield self._best(self._top_k)
        else:
            yield from self._in_order()

    def _in_order(self) -> Iterator[list[Record]]:
        source = self.run.survey.source
        given = source.rows()
        for rows in self.run:
            records = list[Record]()
            batch: object = None
            for number, probability in zip(rows, self.run.probabilities(rows), strict=True):
                row = next(given, None)
                before, batch = batch, _batch(row)
                if records and (len(records) == _ROWS or batch is not before):
                    yield records
                    records = []
                records.append(self._record(number, row, probability))
            yield records
        if next(given, None) is not None:
            raise _changed(source.name)

    def _record(self, number: int, row: TableRow | None, probability: np.float32) -> Record:
        if row is None:
            raise _changed(self.run.survey.source.name)
        image, text = self.run.survey.source.shown(row)
        error = self.run.error(number)
        if error is not None and len(self.errors) < SHOWN_ERRORS:
            name = f"{row.place}: {cut(image) or 'no image'}"
            self.errors.append(Failure(name, error, cut(text) or None))
        score = shortest(self.run.scores[number])
        likely = None if np.isnan(probability) else shortest(probability)
        words = self.run.words(number)
        return Record(image, text, score, likely, error, row=row, words=words, place=number)

    def _best(self, top_k: int) -> list[Record]:
        """The best rows of each image or text, best first, in order of their first row."""
        for _ in self.run:
            pass
        scores, survey = self.run.scores, self.run.survey
        group = survey.text_of if self._by == "text" else survey.image_of
        order = np.lexsort((-scores, group))
        order = order[~np.isnan(scores[order])]
        of = group[order]
        first = np.searchsorted(of, of)  # place of the best row of the same group
        chosen = order[np.arange(len(of)) - first < top_k].tolist()
        wanted, found = set(chosen), dict[int, Record]()
        failed = np.isnan(scores)
        probabilities = self.run.probabilities(range(len(scores)))
        for number, row in enumerate(survey.source.rows()):
            if number in wanted or failed[number]:
                if survey.source.embedded and isinstance(row.values, ArrowValues):
                    row = replace(row, values=row.values.alone())  # it waits for all others
                record = self._record(number, row, probabilities[number])  # notes its error
                if number in wanted:
                    found[number] = record
        return [found[number] for number in chosen]


def _batch(row: TableRow | None) -> object:
    """What a row of Parquet holds in memory, which may be large; None for others."""
    return row.values.batch if row is not None and isinstance(row.values, ArrowValues) else None


def _changed(name: str) -> InputError:
    return InputError(f"{name} was changed while it was read. Run the command again")


def write_records(
    records: Iterable[list[Record]],
    origin: Origin,
    output: str,
    form: str,
    *,
    goes_on: bool,
) -> None:
    """Write records in one of the `FORMATS`.

    Args:
        records: records, scored while they are iterated over.
        origin: what the records come from, with the columns of the output.
        output: path of a file, or "-" for standard output.
        form: name of the format.
        goes_on: whether the file may already begin with these records.

    Raises:
        DsdError: the disk is full or cannot be written to.
    """
    written = FORMATS[form]
    if not isinstance(written, Streamed):
        written.write(output, (record for some in records for record in some), origin)
        return
    file = LineFile(output, written.header(origin.layout), goes_on=goes_on)
    try:
        for some in records:
            file.add(written.lines(some, origin.layout))
        file.finish()
    finally:
        file.close()
