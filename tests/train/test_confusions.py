"""Confusions of an evaluation, against questions counted by hand."""

from __future__ import annotations

import json

import numpy as np

from dsd_trt.train.evaluation.answers import Answer, grade
from dsd_trt.train.evaluation.confusions import (
    LISTED,
    SHOWN,
    AskedTexts,
    Confusion,
    confusion_table,
)
from dsd_trt.train.evaluation.figures import as_text, figures, to_json
from dsd_trt.train.left_out import LeftOut
from dsd_trt.train.question import Question

IMAGE = np.zeros((4, 4, 3), np.uint8)


def question(*texts: str, right: int = 0) -> Question:
    return Question("word", tuple((IMAGE, text) for text in texts), right, "one")


def asked(*rows: tuple[Question, tuple[float, ...]]) -> tuple[list[Answer], list[Confusion]]:
    texts = AskedTexts()
    questions = list(texts.through(question for question, _ in rows))
    answers = [grade(it, scores) for it, (_, scores) in zip(questions, rows, strict=True)]
    return answers, texts.confusions(answers)


def test_wrong_texts_are_counted_the_most_frequent_first() -> None:
    answers, found = asked(
        (question("a cat", "a dog"), (0.9, 0.1)),  # right
        (question("a cat", "a dog"), (0.1, 0.9)),
        (question("a dog", "a cat"), (0.1, 0.9)),
        (question("a dog", "a cat", "a cow", right=0), (0.1, 0.2, 0.9)),
        (question("a dog", "a cow", right=0), (0.5, 0.5)),  # a tie
        (question("a dog", "a dog"), (0.1, 0.9)),  # the same text
        (question("a dog", "a cat"), (float("nan"), float("nan"))),  # left out
    )
    assert found == [
        Confusion("a dog", "a cow", 2),
        Confusion("a cat", "a dog", 1),
        Confusion("a dog", "a cat", 1),
    ]
    text = as_text(figures(answers), LeftOut(), confusions=found)
    assert "| a dog | a cow | 2 |\n" in text
    plain = json.loads(to_json(figures(answers), {}, LeftOut(), confusions=found))
    assert plain["confusions"][0] == {"right": "a dog", "chosen": "a cow", "times": 2}


def test_an_evaluation_without_wrong_texts_has_no_table() -> None:
    answers, found = asked((question("a cat", "a dog"), (0.9, 0.1)))
    assert found == []
    assert confusion_table(found) == ""
    rows = figures(answers)
    assert as_text(rows, LeftOut(), confusions=found) == as_text(rows, LeftOut())
    assert json.loads(to_json(rows, {}, LeftOut(), confusions=found))["confusions"] == []


def test_a_table_says_how_many_it_does_not_show_and_keeps_its_columns() -> None:
    hostile = "a | b\nc " + "d" * 200
    found = [Confusion(hostile, "e", 9), *(Confusion("f", str(it), 1) for it in range(SHOWN + 3))]
    lines = confusion_table(found).splitlines()
    assert len(lines) == 2 + SHOWN + 2
    assert {line.replace("\\|", "").count("|") for line in lines[: 2 + SHOWN]} == {4}
    assert lines[-1] == "4 more, as often or less."
    many = [Confusion("f", str(it), 1) for it in range(LISTED + 5)]
    assert len(json.loads(to_json([], {}, LeftOut(), confusions=many))["confusions"]) == LISTED
