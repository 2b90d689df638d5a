"""Figures of a table's labelled pairs, beside those of its questions."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsd_trt.bundle.manifest import Calibration
from dsd_trt.files.schema import parse_json
from dsd_trt.files.whole import append, whole_lines
from dsd_trt.match_probability import match_probability
from dsd_trt.metrics import Summary, summarize
from dsd_trt.results import Failure
from dsd_trt.tables.labelled import LabelledPair, image_key
from dsd_trt.train.evaluation.answers import Expect, expect_nothing, growing, with_next
from dsd_trt.train.left_out import ignore
from dsd_trt.train.question import Question, Report, Score

_CHUNK = 32  # most images whose pairs are scored and saved at a time

_Key = tuple[str, str]  # key of the image, and the text


@dataclass(frozen=True)
class _Scored:
    """A line of the file of scores; a score is None if the pair has none."""

    key: _Key
    score: float | None
    label: bool


class PairScores:
    """Scores of labelled pairs, and a `Score` of questions about them that computes none again.

    Args:
        score: scorer of a question's candidates.
        pairs: labelled pairs of the table, in its order.
        path: JSONL file of the scores, from which an interrupted run resumes; None saves none.
            `claim` ensures that the scores are those of the same scorer.
        progress: callback `(done)` with the number of pairs scored so far.
        expect: callback `(questions)` with the pairs of the chunk after the one that is scored
            next.

    Attributes:
        pairs: pairs that have a score.
        left_out: number of pairs without a score.
    """

    def __init__(
        self,
        score: Score,
        pairs: Sequence[LabelledPair],
        path: Path | None = None,
        progress: Callable[[int], None] = lambda done: None,
        expect: Expect = expect_nothing,
    ) -> None:
        self._score = score
        self._failures: dict[str, list[Failure]] = {}  # by the image's path
        known = {it.key: it for it in (whole_lines(path, _parse) if path else ())}
        # Pairs that failed are scored again: the cause may be gone.
        self._scores = {key: it.score for key, it in known.items() if it.score is not None}
        groups = dict[str, list[LabelledPair]]()  # in the table's order, in which it is read again
        for pair in pairs:
            groups.setdefault(pair.key, []).append(pair)
        asked = [
            (image, [pair for pair in group if _key(pair) not in self._scores])
            for image, group in groups.items()
        ]
        waiting = [(image, group) for image, group in asked if group]
        progress(done := len(pairs) - sum(len(group) for _, group in asked))
        for chunk, coming in with_next(growing(waiting, _CHUNK)):
            expect(_questions(coming))
            lines = [self._line(pair, score) for pair, score in self._scored(chunk)]
            if path:
                append(path, "".join(lines))
            done += len(lines)
            progress(done)
        self.pairs: tuple[LabelledPair, ...] = tuple(
            pair for pair in pairs if _key(pair) in self._scores
        )
        self.left_out: int = len(pairs) - len(self.pairs)

    def _scored(
        self, chunk: Sequence[tuple[str, Sequence[LabelledPair]]]
    ) -> Iterable[tuple[LabelledPair, float]]:
        def failed(question: Question, failures: Sequence[Failure]) -> None:
            self._failures.setdefault(question.source, []).extend(failures)

        scores = self._score(_questions(chunk), failed)
        for (_, group), row in zip(chunk, scores, strict=True):
            yield from zip(group, row, strict=True)

    def _line(self, pair: LabelledPair, score: float) -> str:
        if math.isfinite(score):
            self._scores[_key(pair)] = score
        plain = {
            "image": pair.key,
            "text": pair.text,
            "label": int(pair.label),
            "score": score if math.isfinite(score) else None,
        }
        return f"{json.dumps(plain, ensure_ascii=False)}\n"

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Images, texts and pairs that could not be scored, each once."""
        every = itertools.chain.from_iterable(self._failures.values())
        return tuple(dict.fromkeys(every))

    def __call__(
        self, questions: Sequence[Question], left_out: Report = ignore
    ) -> list[list[float]]:
        """Scores of questions' candidates; those of other pairs are computed."""
        rows: list[list[float] | None] = []
        others = []
        for question in questions:
            keys = [(image_key(image), text) for image, text in question.candidates]  # type: ignore[arg-type]
            failures = [it for key in keys for it in self._failures.get(key[0], ())]
            if failures and not all(key in self._scores for key in keys):
                left_out(question, list(dict.fromkeys(failures)))
                rows.append([math.nan] * len(keys))
            elif all(key in self._scores for key in keys):
                rows.append([self._scores[key] for key in keys])
            else:
                rows.append(None)
                others.append(question)
        computed = iter(self._score(others, left_out) if others else ())
        return [next(computed) if row is None else row for row in rows]

    def summary(
        self, calibration: Calibration | None, thresholds: Sequence[float], seed: int
    ) -> Summary:
        """Figures of the pairs that have a score.

        Args:
            calibration: calibration of the scores; None gives no probabilities.
            thresholds: probabilities from which on pairs are kept.
            seed: random seed of the intervals, which resample images.
        """
        scores = np.array([self._scores[_key(pair)] for pair in self.pairs], np.float32)
        labels = np.array([pair.label for pair in self.pairs], np.bool_)
        images = [pair.key for pair in self.pairs]
        if calibration is None:
            return summarize(scores, labels, images, seed=seed)
        probabilities = match_probability(scores, calibration).astype(np.float64)
        return summarize(scores, labels, images, probabilities, thresholds, seed=seed)


def _questions(chunk: Sequence[tuple[str, Sequence[LabelledPair]]]) -> list[Question]:
    """A question for each image with its pairs."""
    return [
        Question("text", tuple((it.image, it.text) for it in group), 0, image)
        for image, group in chunk
    ]


def _key(pair: LabelledPair) -> _Key:
    return pair.key, pair.text


def _parse(line: str) -> _Scored:
    """Parse one line of the file of scores.

    Raises:
        ValueError: the line is none.
    """
    plain = parse_json(line)
    if not isinstance(plain, dict) or plain.keys() != {"image", "text", "label", "score"}:
        raise ValueError("not a score")
    score = plain["score"]
    if score is not None and not isinstance(score, float):
        raise ValueError("not a score")
    return _Scored((str(plain["image"]), str(plain["text"])), score, bool(plain["label"]))
