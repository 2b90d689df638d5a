"""Scores of a source's pairs, row for row, in memory that does not grow with their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.manifest import Calibration
from dsd_trt.errors import ImageError
from dsd_trt.jobs import Scorable
from dsd_trt.match_probability import match_probability
from dsd_trt.pairs.survey import PairSurvey
from dsd_trt.results import Failure, Progress
from dsd_trt.scorer import Scorer
from dsd_trt.words import Word, scored_words

if TYPE_CHECKING:
    from dsd_trt.journal import Journal

_TEXT_BYTES = 2**28  # of encoded texts that are in memory at a time
_PAIRS = 2**14  # of a window


class PairRun:
    """Scores all pairs of a survey; equal ones once.

    Pairs are scored in windows: consecutive images, as long as their texts fit in memory.

    Args:
        scorer: scorer that computes the scores.
        survey: pairs to score, with equal ones found.
        levels: noise levels to average over; None is all of the bundle's.
        progress: callback `(done, total)`, in distinct pairs.
        journal: record of the scores so far, as for `Scorer.stream`.
        tokens: whether the scores of tokens are wanted too; memory then grows with the pairs.

    Attributes:
        survey: pairs to score, with equal ones found.
        tokens: whether the scores of tokens are wanted too.
        calibration: (a, b) of the match probability; None if none were fitted.
        scores: f of each pair, float32 (pairs,); NaN where there is none, or none yet.
        computed: number of distinct pairs that have a score so far.
        scored: number of pairs that have a score so far, in order of the rows.
        failed: number of pairs that cannot be scored so far, in order of the rows.
    """

    def __init__(
        self,
        scorer: Scorer,
        survey: PairSurvey,
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
        journal: Journal | None = None,
        *,
        tokens: bool = False,
    ) -> None:
        self.survey = survey
        self.scores: NDArray[np.float32] = np.full(survey.count, np.nan, np.float32)
        self.scored: int = 0
        self.failed: int = 0
        self.computed: int = 0
        self._scorer, self._levels, self._journal = scorer, levels, journal
        self.calibration: Calibration | None = scorer.calibration(levels)
        self._progress = progress
        self.tokens = tokens
        self._tokens = dict[int, NDArray[np.float32]]()  # by place
        self._errors = dict(survey.errors)
        self._known = survey.image_of < 0  # pairs whose outcome is known
        output = scorer.manifest.graphs["text_encoder"].outputs[0]
        width = [size for size in output.shape if isinstance(size, int)]
        size = int(np.prod(width)) * np.dtype(output.dtype).itemsize
        self._texts = max(1, _TEXT_BYTES // size)

    def __iter__(self) -> Iterator[range]:
        """Score, and yield ranges of rows whose outcome is known: consecutive, in order."""
        yield from self._ready()
        done, total = 0, sum(1 for _ in self.survey.distinct())
        for window in self._windows():
            progress: Progress | None = None
            if (told := self._progress) is not None:
                before = done

                def progress(
                    now: int, _: int | None, told: Progress = told, before: int = before
                ) -> None:
                    told(before + now, total)

            yield from self._score(window, progress)
            done += len(window)
        if self._journal:
            self._journal.require_used()

    def probabilities(self, rows: range) -> NDArray[np.float32]:
        """Match probabilities of consecutive rows, float32 (rows,); NaN where there are none."""
        return match_probability(self.scores[rows.start : rows.stop], self.calibration)

    def error(self, row: int) -> str | None:
        """Why a row has no score; None if it has one."""
        return self._errors.get(int(self.survey.first[row]))

    def words(self, row: int) -> tuple[Word, ...] | None:
        """Words of a row's text with their scores; None without a score, or if not wanted."""
        place = int(self.survey.first[row])
        if place not in self._tokens:
            return None
        _, text = self.survey.pair(place)
        return scored_words(self._scorer.words(text), self._tokens[place])

    def _windows(self) -> Iterator[list[int]]:
        """Places of the pairs of each window."""
        window, texts = list[int](), set[int]()
        for place, _, text in self.survey.distinct():
            if (text not in texts and len(texts) == self._texts) or len(window) == _PAIRS:
                yield window
                window, texts = [], set()
            window.append(place)
            texts.add(text)
        if window:
            yield window

    def _score(self, window: Sequence[int], progress: Progress | None) -> Iterator[range]:
        images: dict[str, Scorable | ImageError] = {}
        pairs, places = list[tuple[Scorable, str]](), list[int]()
        for place in window:
            name, text = self.survey.pair(place)
            if name not in images:
                try:
                    images[name] = self.survey.source.image(name)
                except ImageError as error:
                    images[name] = error
            image = images[name]
            if isinstance(image, ImageError):
                self._errors[place] = str(image)
                self._known[place] = True
            else:
                pairs.append((image, text))
                places.append(place)
        if pairs:
            stream = self._scorer.stream_pairs(
                pairs, self._levels, progress, self._journal, tokens=self.tokens
            )
            texts = {it.text: it for it in stream.errors}
            for image_scores, among in stream.images:
                tokens = image_scores.tokens
                for of_image, at in enumerate(among):
                    place, score = places[at], float(image_scores.scores[of_image])
                    self.scores[place], self._known[place] = score, True
                    if not np.isnan(score):
                        self.computed += 1
                        if tokens is not None:
                            self._tokens[place] = tokens[of_image]
                    else:
                        text = pairs[at][1]
                        failures = [texts[text]] if text in texts else image_scores.errors
                        self._errors[place] = _reason(failures, text)
                yield from self._ready()
        yield from self._ready()

    def _ready(self) -> Iterator[range]:
        """The next rows whose outcome is known, up to the first whose outcome is not."""
        first, ready = self.survey.first, True
        while ready:
            start = self.scored + self.failed
            known = self._known[first[start : start + _PAIRS]]
            ready = len(known) == _PAIRS and bool(known.all())
            count = len(known) if known.all() else int(np.argmin(known))
            if count:
                rows = range(start, start + count)
                self.scores[start : rows.stop] = self.scores[first[start : rows.stop]]
                failed = int(np.isnan(self.scores[start : rows.stop]).sum())
                self.scored, self.failed = self.scored + count - failed, self.failed + failed
                yield rows


def _reason(failures: Sequence[Failure], text: str) -> str:
    of_pair = (it for it in failures if it.text == text)
    of_image = (it for it in failures if it.text is None)
    return next((it.reason for it in chain(of_pair, of_image)), "it has no score")
