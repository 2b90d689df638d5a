"""Asking a scorer questions, and keeping what it answered, so that a stopped run can go on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dsd_trt import Scorer
from dsd_trt.errors import InputError
from dsd_trt.files import whole_lines
from dsd_trt.train.data.question import Question

Score = Callable[[Sequence[Question]], list[list[float]]]
"""Scores of every candidate of some questions; NaN where an image could not be decoded."""

_CHUNK = 32  # questions scored and kept at a time


@dataclass(frozen=True)
class Answer:
    """How a question was answered.

    Attributes:
        kind: the question's.
        source: the question's.
        candidates: how many there were.
        rank: of the right one, from 1; candidates with the same score stand before it, so a tie is
            a wrong answer.
    """

    kind: str
    source: str
    candidates: int
    rank: int


def grade(question: Question, scores: Sequence[float]) -> Answer:
    """Find the right candidate's rank; last if it, or any other, has no score."""
    others = np.delete(np.asarray(scores), question.right)
    ahead = len(others) if np.isnan(scores).any() else int((others >= scores[question.right]).sum())
    return Answer(question.kind, question.source, len(scores), 1 + ahead)


def ask(
    questions: Iterable[Question],
    score: Score,
    path: Path | None = None,
    progress: Callable[[int], None] = lambda answered: None,
) -> Iterator[Answer]:
    """Ask questions, a few at a time.

    Args:
        questions: the same ones, in the same order, whenever a run goes on.
        score: of their candidates.
        path: JSONL file that answers are kept in; those it holds already are not asked for again.
        progress: told how many questions are answered.

    Raises:
        InputError: the file holds answers to other questions.
    """
    kept = [Answer(**json.loads(line)) for line in whole_lines(path)] if path else []
    questions = iter(questions)
    for answered, answer in enumerate(kept, start=1):
        question = next(questions, None)
        if question is None or (question.kind, question.source) != (answer.kind, answer.source):
            raise InputError(f"{path} holds answers to other questions: delete it to start again")
        progress(answered)
        yield answer
    count = len(kept)
    while chunk := list(itertools.islice(questions, _CHUNK)):
        answers = [grade(*pair) for pair in zip(chunk, score(chunk), strict=True)]
        if path:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(asdict(answer))}\n" for answer in answers)
        count += len(answers)
        progress(count)
        yield from answers


def by_scorer(scorer: Scorer) -> Score:
    """Score candidates with a bundle."""

    def score(questions: Sequence[Question]) -> list[list[float]]:
        pairs = [pair for question in questions for pair in question.candidates]
        scores = iter(scorer.score_pairs(pairs).scores.tolist())
        return [list(itertools.islice(scores, len(q.candidates))) for q in questions]

    return score
