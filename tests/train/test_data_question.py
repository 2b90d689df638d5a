"""Questions: where the right candidate stands, and splits that share nothing."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dsd_trt.train.question import Question, shuffled, split
from dsd_trt.train.run_key import question_hash


def ask(seed: int, number: int, candidates: int = 10) -> Question:
    pairs = [(f"{i}.jpg", f"text {i}") for i in range(candidates)]
    return shuffled("kind", pairs[0], pairs[1:], "source", [seed, number])


def of_sources(*sources: str) -> list[Question]:
    return [Question("kind", ((f"{i}.jpg", "text"),), 0, name) for i, name in enumerate(sources)]


def test_all_candidates_are_there_and_the_right_one_is_named() -> None:
    for number in range(50):
        question = ask(0, number)
        assert question.candidates[question.right] == ("0.jpg", "text 0")
        wrong = [pair for i, pair in enumerate(question.candidates) if i != question.right]
        assert wrong == [(f"{i}.jpg", f"text {i}") for i in range(1, 10)]
        assert (question.kind, question.source) == ("kind", "source")


@pytest.mark.parametrize("candidates", [2, 10])
def test_the_right_one_stands_anywhere_equally_often(candidates: int) -> None:
    count = 4000
    places = Counter(ask(1, number, candidates).right for number in range(count))
    assert set(places) == set(range(candidates))
    expected = count / candidates
    assert max(abs(n - expected) for n in places.values()) < 4 * expected**0.5


def test_its_place_follows_from_the_seed() -> None:
    def places(seed: int) -> list[int]:
        return [ask(seed, number).right for number in range(200)]

    assert places(2) == places(2)
    assert np.mean(np.equal(places(2), places(3))) < 0.2


def test_a_split_parts_sources_and_keeps_every_question_in_order() -> None:
    questions = of_sources(*(f"image {i * 7 % 40}" for i in range(200)))
    few, rest = split(questions, 0.25, seed=0)
    assert len({question.source for question in few}) == 10
    assert not {question.source for question in few} & {question.source for question in rest}
    order = {id(question): i for i, question in enumerate(questions)}
    for part in (few, rest):
        assert [order[id(q)] for q in part] == sorted(order[id(q)] for q in part)
    assert {id(q) for q in (*few, *rest)} == set(order)


def test_a_split_follows_from_its_seed_and_not_from_the_order() -> None:
    questions = of_sources(*map(str, range(100)))

    def chosen(questions: list[Question], seed: int) -> set[str]:
        return {question.source for question in split(questions, 0.3, seed)[0]}

    assert chosen(questions, 1) == chosen(questions[::-1], 1)
    assert chosen(questions, 1) != chosen(questions, 2)


@pytest.mark.parametrize(("fraction", "few"), [(0, 0), (1e-9, 1), (0.5, 2), (1, 4)])
def test_a_split_at_its_limits(fraction: float, few: int) -> None:
    first, rest = split(of_sources("a", "b", "c", "d"), fraction, seed=0)
    assert (len(first), len(rest)) == (few, 4 - few)
    assert split([], fraction, seed=0) == ([], [])


def test_a_pipe_in_place_of_an_image_is_one_that_cannot_be_read(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    question = Question("kind", ((str(image), "text"),), 0, "source")
    missing = question_hash(question)
    os.mkfifo(image)
    assert question_hash(question) == missing
    image.unlink()
    image.write_bytes(b"content")
    assert question_hash(question) != missing
