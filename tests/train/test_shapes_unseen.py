"""Tasks the demonstration has never seen: what they ask, and that pretraining lacks it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dsd_trt.train.data.catalogue import UNSEEN_TASKS, open_dataset
from dsd_trt.train.shapes.caption import words
from dsd_trt.train.shapes.render import Place
from dsd_trt.train.shapes.unseen import NEW_SHAPES, NUMBERS, TASKS, distance_to, unseen_questions

X, Y = np.meshgrid(*[(np.arange(200, dtype=np.float32) + np.float32(0.5)) / np.float32(200)] * 2)


def test_the_catalogue_names_every_task() -> None:
    assert tuple(TASKS) == UNSEEN_TASKS
    first = next(iter(open_dataset("unseen-colours", Path(), "train", 3, limit=1)))
    drawn = next(unseen_questions(1, "colours", 6))
    assert np.array_equal(np.asarray(first.candidates[0][0]), np.asarray(drawn.candidates[0][0]))


@pytest.mark.parametrize("task", TASKS)
def test_a_question_has_one_image_and_four_texts(task: str) -> None:
    questions = list(unseen_questions(12, task, 0))
    for question in questions:
        images, texts = zip(*question.candidates, strict=True)
        assert len(set(texts)) == 4
        assert all(image is images[0] for image in images)
        assert images[0].shape == (64, 64, 3)
        assert images[0].dtype == np.uint8
    assert len({question.right for question in questions}) > 1
    assert len({question.candidates[question.right][1] for question in questions}) > 3
    again, other = (next(unseen_questions(1, task, seed)) for seed in (0, 1))
    first = np.asarray(questions[0].candidates[0][0])
    assert np.array_equal(np.asarray(again.candidates[0][0]), first)
    assert not np.array_equal(np.asarray(other.candidates[0][0]), first)


@pytest.mark.parametrize("task", sorted({*TASKS} - {"style"}))
def test_every_text_has_a_word_that_pretraining_lacks(task: str) -> None:
    known = set(words())
    for question in unseen_questions(6, task, 0):
        for _, text in question.candidates:
            assert not {*re.findall(r"[a-z]+", text)} <= known, text


def test_known_words_in_a_new_style() -> None:
    for question in unseen_questions(6, "style", 0):
        assert all({*text.split()} <= {*words()} for _, text in question.candidates)


@pytest.mark.parametrize(
    ("shape", "area"),  # of the unit circumscribed circle
    [
        ("hexagon", 1.5 * 3**0.5),
        ("diamond", 2 * 0.62),
        ("arrow", 1.1 * 0.44 + 0.9 * 0.7),
        # The unit circle without its lens with a circle of radius 0.85 at distance 0.5.
        ("crescent", 1.3929),
    ],
)
def test_areas_of_new_shapes(shape: str, area: float) -> None:
    distance = distance_to(shape, X, Y, Place(0.5, 0.5, 0.4), np.random.default_rng(0))
    assert (distance < 0).mean() / 0.4**2 == pytest.approx(area, rel=0.02)


@pytest.mark.parametrize("shape", NEW_SHAPES)
def test_distances_grow_no_faster_than_one_per_unit(shape: str) -> None:
    place = Place(0.5, 0.5, 0.4)
    distance = distance_to(shape, X, Y, place, np.random.default_rng(0))
    assert np.abs(np.diff(distance, axis=0)).max() < 1.01 / 200 + 1e-6
    outside = np.hypot(X - 0.5, Y - 0.5) > 1.02 * place.radius
    assert (distance[outside] > 0).all()


def test_counted_things_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(
        "dsd_trt.train.shapes.unseen._draw", lambda figures, rng: drawn.append(figures)
    )
    for _ in range(12):
        _, text, _ = TASKS["counting"](np.random.default_rng(len(drawn)))
        assert NUMBERS.index(text.split()[0]) + 1 == len(drawn[-1])
