"""Records of scored pairs, yielded as scores arrive, and written to the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dsd_trt.commands.formats import FORMATS, Streamed
from dsd_trt.commands.inputs import Pair
from dsd_trt.commands.output import LineFile, Record, top_texts
from dsd_trt.image.files import printable
from dsd_trt.jobs import Scorable
from dsd_trt.journal import Journal
from dsd_trt.pipeline import match_probability
from dsd_trt.results import Failure, Progress
from dsd_trt.scorer import Scorer


def to_records(
    pairs: Iterable[tuple[str, str]],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float32],
) -> list[Record]:
    """Records of all pairs that have a score.

    Args:
        pairs: image and text of each score, in order.
        scores: scores of any shape, NaN for pairs without one.
        probabilities: match probabilities, of the same shape; NaN where there are none.
    """
    return [
        Record(
            printable(image),
            text,
            _shortest(score),
            None if np.isnan(probability) else _shortest(probability),
        )
        for (image, text), score, probability in zip(
            pairs, scores.ravel(), probabilities.ravel(), strict=True
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

    Attributes:
        texts: texts to score, one column each.
        errors: images, texts and pairs that could not be scored so far.
        images: number of images scored so far.
        scored: number of pairs scored so far, including those not among the `top_k`.
        passes: number of scores at single noise levels so far: passes in pair mode.
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
        self._top_k, self._prune, self.texts = top_k, prune, texts
        searched = top_k if prune else None
        self._stream = scorer.stream(images, texts, levels, progress, searched, journal)
        self._calibration = scorer.calibration(levels)
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
            probabilities = match_probability(image.scores, self._calibration)
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
        self._top_k, self._pairs = top_k, pairs
        chosen = [(pair.image, pair.text) for pair in pairs]
        self._stream = scorer.stream_pairs(chosen, levels, progress, journal)
        self._calibration = scorer.calibration(levels)
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
            records = to_records(names, some, match_probability(some, self._calibration))
            self.scored += len(records)
            yield records


def write_records(
    records: GridRecords | PairRecords, output: str, form: str, *, grid: bool, goes_on: bool
) -> None:
    """Write records in one of the `FORMATS`.

    Args:
        records: records, scored while they are iterated over.
        output: path of a file, or "-" for standard output.
        form: name of the format.
        grid: whether the records are every image against every text.
        goes_on: whether the file may already begin with these records.

    Raises:
        DsdError: the disk is full or cannot be written to.
    """
    written = FORMATS[form]
    if not isinstance(written, Streamed):
        written.write(output, (record for some in records for record in some), grid)
        return
    file = LineFile(output, written.header, goes_on=goes_on)
    try:
        for some in records:
            file.add(written.lines(some))
        file.finish()
    finally:
        file.close()


def _shortest(number: np.float32) -> float:
    """The decimal number with the fewest digits that parses to the same float32."""
    return float(str(number))
