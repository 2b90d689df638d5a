"""Asking a scorer questions, and keeping what it answered, so that a stopped run can go on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from dsd_trt import Scorer
from dsd_trt.errors import InputError
from dsd_trt.files.schema import from_plain, parse_json
from dsd_trt.files.whole import append, whole_lines, write_whole
from dsd_trt.results import Failure
from dsd_trt.train.left_out import ignore, name_image
from dsd_trt.train.question import Question, Report, Score
from dsd_trt.train.run_key import question_hash

_CHUNK = 32  # questions scored and kept at a time


@dataclass(frozen=True)
class Answer:
    """How a question was answered.

    Attributes:
        kind: the question's.
        source: the question's.
        candidates: how many there were.
        rank: of the right one, from 1; candidates with the same score stand before it, so a tie is
            a wrong answer. None where the question is left out, as a candidate has no score.
        failures: why it is left out.
    """

    kind: str
    source: str
    candidates: int
    rank: int | None
    failures: tuple[Failure, ...] = ()


def grade(question: Question, scores: Sequence[float], failures: Sequence[Failure] = ()) -> Answer:
    """Find the right candidate's rank, if all have a score."""
    rank = None
    if np.isfinite(scores).all():
        others = np.delete(np.asarray(scores), question.right)
        rank = 1 + int((others >= scores[question.right]).sum())
    return Answer(question.kind, question.source, len(scores), rank, tuple(failures))


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
        path: JSONL file that answers are kept in, each with its question's hash; whose answers
            they are, `claim` has to see to. Those it holds already are not asked for again, but
            for questions that were left out: what failed may have been mended.
        progress: told how many questions are answered.

    Raises:
        InputError: the file holds answers to other questions.
    """
    kept = _read(path) if path else []
    count, mended = 0, dict[int, tuple[Answer, str]]()
    questions = iter(questions)
    while chunk := list(itertools.islice(questions, _CHUNK)):
        hashes = [question_hash(question) for question in chunk] if path else []
        answers = [answer for answer, _ in kept[count : count + len(chunk)]]
        known_hashes = [known for _, known in kept[count : count + len(chunk)]]
        for i, answer in enumerate(answers):
            same = (chunk[i].kind, chunk[i].source) == (answer.kind, answer.source)
            # An image that could not be read may have been mended.
            if not same or (answer.rank is not None and known_hashes[i] != hashes[i]):
                raise _of_others(path)
        asked = [i for i in range(len(chunk)) if i >= len(answers) or answers[i].rank is None]
        known = len(answers)
        for place, answer in zip(asked, _answers([chunk[i] for i in asked], score), strict=True):
            if place >= known:
                answers.append(answer)
            elif answers[place] != answer:
                answers[place] = answer
                mended[count + place] = answer, hashes[place]
        if path and len(answers) > known:
            append(path, "".join(map(_line, answers[known:], hashes[known:])))
        count += len(chunk)
        progress(count)
        yield from answers
    if count < len(kept):
        raise _of_others(path)
    if path and mended:
        everything = [mended.get(place, kept) for place, kept in enumerate(_read(path))]
        write_whole(path, "".join(_line(*it) for it in everything))


def by_scorer(scorer: Scorer) -> Score:
    """Score candidates with a bundle."""

    def score(questions: Sequence[Question], left_out: Report = ignore) -> list[list[float]]:
        pairs = [pair for question in questions for pair in question.candidates]
        result = scorer.score_pairs(pairs)
        failed = {(failure.image, failure.text): failure for failure in result.errors}
        scored = zip(result.images, result.texts, result.scores.tolist(), strict=True)
        rows = []
        for question in questions:
            row, failures = [], dict[Failure, None]()
            for image, _ in question.candidates:
                name, text, value = next(scored)
                row.append(value)
                for key in ((name, None), (None, text), (name, text)):
                    if failure := failed.get(key):
                        called = None if key[0] is None else name_image(image, question)
                        failures[replace(failure, image=called)] = None
            if failures:
                left_out(question, list(failures))
            rows.append(row)
        return rows

    return score


def _answers(questions: Sequence[Question], score: Score) -> list[Answer]:
    """What a scorer says."""
    if not questions:
        return []
    failed: dict[int, Sequence[Failure]] = {}  # by the question's identity

    def note(question: Question, failures: Sequence[Failure]) -> None:
        failed[id(question)] = failures

    scores = score(questions, note)
    return [
        grade(question, row, failed.get(id(question), ()))
        for question, row in zip(questions, scores, strict=True)
    ]


def _line(answer: Answer, question: str) -> str:
    plain = {**asdict(answer), "question": question}
    if not answer.failures:
        del plain["failures"]
    return f"{json.dumps(plain)}\n"


def _of_others(path: Path | None) -> InputError:
    return InputError(f"{path} holds answers to other questions: delete it to start again")


def _read(path: Path) -> list[tuple[Answer, str]]:
    """Answers kept before, each with its question's hash; none from a damaged one on."""
    return whole_lines(path, _parse)


def _parse(line: str) -> tuple[Answer, str]:
    """An answer and its question's hash.

    Raises:
        ValueError: it is something else.
    """
    plain = parse_json(line)
    if not isinstance(plain, dict):
        raise ValueError("not an object")
    question = str(plain.pop("question", ""))
    answer = from_plain(Answer, {"failures": [], **plain})
    if answer.rank is not None and not 1 <= answer.rank <= answer.candidates:
        raise ValueError(f"rank is {answer.rank} of {answer.candidates}")
    return answer, question
