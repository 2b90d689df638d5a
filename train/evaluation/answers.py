"""Answering questions with a scorer; answers are kept on disk to resume an interrupted run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from dsd_trt.errors import InputError
from dsd_trt.files.schema import from_plain, parse_json
from dsd_trt.files.whole import append, whole_lines, write_whole
from dsd_trt.results import Failure
from dsd_trt.train.question import Question, Score
from dsd_trt.train.run_key import question_hash

_CHUNK = 32  # most questions that are scored and saved at a time

T = TypeVar("T")

Expect: TypeAlias = Callable[[Sequence[Question]], None]
"""Callback `(questions)` with questions that are scored soon."""


def expect_nothing(questions: Sequence[Question]) -> None:
    """An `Expect` of scorers that decode nothing ahead."""


@dataclass(frozen=True)
class Answer:
    """A scorer's answer to one question.

    Attributes:
        kind: kind of the question, see `Question`.
        source: source of the question, see `Question`.
        candidates: number of candidates of the question.
        rank: rank of the right candidate, from 1; candidates of equal score precede it, so a tie
            is a wrong answer. None if the question was left out.
        failures: failures that the question was left out for.
        chosen: index of the candidate with the highest score; of a wrong answer, the one that won
            or tied. None if the question was left out, or answered by an earlier version.
    """

    kind: str
    source: str
    candidates: int
    rank: int | None
    failures: tuple[Failure, ...] = ()
    chosen: int | None = None


def grade(question: Question, scores: Sequence[float], failures: Sequence[Failure] = ()) -> Answer:
    """Rank the right candidate by the candidates' scores.

    Args:
        question: question that was answered.
        scores: score of each candidate; NaN for all of them if the question is left out.
        failures: failures that prevented a score.
    """
    rank = chosen = None
    if np.isfinite(scores).all():
        others = np.array(scores, np.float64)
        others[question.right] = -np.inf
        rank = 1 + int((others >= scores[question.right]).sum())
        chosen = question.right if rank == 1 else int(others.argmax())
    return Answer(question.kind, question.source, len(scores), rank, tuple(failures), chosen)


def ask(
    questions: Iterable[Question],
    score: Score,
    path: Path | None = None,
    progress: Callable[[int], None] = lambda answered: None,
    expect: Expect = expect_nothing,
) -> Iterator[Answer]:
    """Answer questions in chunks of growing length, lazily.

    Args:
        questions: questions to answer; a resumed run needs the same ones in the same order.
        score: scorer of the questions' candidates.
        path: JSONL file of answers, each with its question's hash; None saves none. Questions
            with an answer in it are not scored again, unless they were left out, since the cause
            may be gone. `claim` ensures that the answers are those of the same scorer.
        progress: callback `(answered)` with the number of questions answered so far.
        expect: callback `(questions)` with those of the chunk after the one that is scored next.

    Raises:
        InputError: the file holds answers to other questions.
    """
    kept = _read(path) if path else []
    count, mended = 0, dict[int, tuple[Answer, str]]()
    for chunk, coming in with_next(growing(questions, _CHUNK)):
        expect([it for i, it in enumerate(coming, count + len(chunk)) if not _known(kept, i)])
        hashes = [question_hash(question) for question in chunk] if path else []
        answers = [answer for answer, _ in kept[count : count + len(chunk)]]
        known_hashes = [known for _, known in kept[count : count + len(chunk)]]
        for i, answer in enumerate(answers):
            same = (chunk[i].kind, chunk[i].source) == (answer.kind, answer.source)
            # The hash of a question left out may change, once its image can be read.
            if not same or (answer.rank is not None and known_hashes[i] != hashes[i]):
                raise _of_others(path)
        asked = [i for i in range(len(chunk)) if not _known(kept, count + i)]
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


def growing(items: Iterable[T], most: int) -> Iterator[list[T]]:
    """Lists of 1, 2, 4 items and so on: the first shows early how long all will take.

    Args:
        items: items to divide, read lazily.
        most: number of items of the longest lists.
    """
    items, size = iter(items), 1
    while part := list(itertools.islice(items, size)):
        yield part
        size = min(2 * size, most)


def with_next(lists: Iterable[list[T]]) -> Iterator[tuple[list[T], list[T]]]:
    """Each list with the one after it, which is empty for the last one."""
    yield from itertools.pairwise(itertools.chain(lists, [[]]))


def _known(kept: Sequence[tuple[Answer, str]], place: int) -> bool:
    """Whether a question is answered, and was not left out."""
    return place < len(kept) and kept[place][0].rank is not None


def _answers(questions: Sequence[Question], score: Score) -> list[Answer]:
    """Answers of a scorer to a chunk of questions."""
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
    if answer.chosen is None:
        del plain["chosen"]
    return f"{json.dumps(plain)}\n"


def _of_others(path: Path | None) -> InputError:
    return InputError(f"{path} holds answers to other questions: delete it to start again")


def _read(path: Path) -> list[tuple[Answer, str]]:
    """Saved answers with their questions' hashes, up to the first damaged line."""
    return whole_lines(path, _parse)


def _parse(line: str) -> tuple[Answer, str]:
    """Parse one line into an answer and its question's hash.

    Raises:
        ValueError: the line is not an answer.
    """
    plain = parse_json(line)
    if not isinstance(plain, dict):
        raise ValueError("not an object")
    question = str(plain.pop("question", ""))
    answer = from_plain(Answer, {"failures": [], "chosen": None, **plain})
    if answer.rank is not None and not 1 <= answer.rank <= answer.candidates:
        raise ValueError(f"rank is {answer.rank} of {answer.candidates}")
    if answer.chosen is not None and not 0 <= answer.chosen < answer.candidates:
        raise ValueError(f"chosen is {answer.chosen} of {answer.candidates}")
    return answer, question
