"""Questions about drawn shapes: what they ask, against what the pictures show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from shapes_claims import COLOUR_WORDS, SHAPE_WORDS, Claims, read
from test_shapes_render import Picture, borne_out

from dsd_trt.train.question import Question
from dsd_trt.train.shapes import datasets as shapes
from dsd_trt.train.shapes.datasets import shapes_comvg, shapes_edits, shapes_refcocog, shapes_vqa
from dsd_trt.train.shapes.render import Drawing, draw
from dsd_trt.train.shapes.scene import Scene
from dsd_trt.train.shapes.twins import draw_twins

RELATIONS = ("left of", "right of", "above", "below", "inside", "in front of")
FORMS = [shapes_comvg, shapes_refcocog, shapes_vqa, shapes_edits]
few_and_many = pytest.mark.parametrize("count", [180, pytest.param(720, marks=pytest.mark.slow)])

Form = Callable[[int, int], Iterator[Question]]
Drawn = dict[bytes, tuple[Scene, Drawing]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What each picture was drawn from."""
    known: Drawn = {}

    def remember(scene: Scene, rng: np.random.Generator) -> Drawing:
        drawing = draw(scene, rng)
        known[drawing.pixels.tobytes()] = scene, drawing
        return drawing

    monkeypatch.setattr(shapes, "draw", remember)
    return known


def pixels(question: Question, place: int) -> NDArray[np.uint8]:
    picture = question.candidates[place][0]
    assert isinstance(picture, np.ndarray)
    return picture


def pictured(question: Question, place: int, drawn: Drawn) -> Picture:
    """A candidate: its picture, and what its text claims."""
    scene, drawing = drawn[pixels(question, place).tobytes()]
    return Picture(scene, drawing, read(question.candidates[place][1]), question.kind)


def nouns(claims: Claims) -> list[tuple[str, str]]:
    return [(colour, shape) for _, colour, shape in claims.things]


@few_and_many
def test_the_right_picture_of_two_bears_out_the_caption(drawn: Drawn, count: int) -> None:
    untrue, still_true, kinds = 0, Counter[str](), Counter[str]()
    for question in shapes_comvg(count, 0):
        kinds[question.kind] += 1
        right, wrong = (pictured(question, i, drawn) for i in (question.right, 1 - question.right))
        assert right.claims == wrong.claims
        assert right.claims.relation is not None
        assert question.kind in ("subject", "object", f"predicate: {right.claims.relation}")
        untrue += not borne_out(right.claims, right)
        still_true[question.kind] += borne_out(wrong.claims, wrong)
    assert kinds["subject"] == kinds["object"] == count / 3
    assert all(kinds[f"predicate: {relation}"] == count / 18 for relation in RELATIONS)
    assert untrue <= 0.02 * count  # as for all drawings
    # Things side by side may touch, which from the pixels is told apart from neither.
    assert still_true.total() == still_true["predicate: in front of"] <= 0.2 * count / 18


@few_and_many
def test_the_wrong_picture_differs_in_what_the_kind_says(drawn: Drawn, count: int) -> None:
    for question in shapes_comvg(count, 1):
        right, wrong = (
            pictured(question, i, drawn).scene for i in (question.right, 1 - question.right)
        )
        changed = [
            (a.colour, a.shape) != (b.colour, b.shape)
            for a, b in zip(right.things, wrong.things, strict=True)
        ]
        part = question.kind.split(":")[0]
        assert changed[:2] == [part == "subject", part == "object"]
        assert not any(changed[2:])
        assert (right.relation != wrong.relation) == (part == "predicate")


def test_one_text_of_ten_is_true_of_the_picture(drawn: Drawn) -> None:
    untrue = 0
    for question in shapes_refcocog(200, 0):
        assert question.kind == "text of ten"
        assert len({text for _, text in question.candidates}) == 10
        assert len({pixels(question, i).tobytes() for i in range(10)}) == 1
        for i in range(10):
            one = pictured(question, i, drawn)
            present = {(thing.colour, thing.shape) for thing in one.scene.things}
            if i == question.right:
                assert present.issuperset(nouns(one.claims))
                untrue += not borne_out(one.claims, one)
            else:
                assert not present.issuperset(nouns(one.claims))
                assert not borne_out(one.claims, one)
    assert untrue <= 4


@few_and_many
def test_the_right_answer_is_true_of_the_picture(drawn: Drawn, count: int) -> None:
    asked = Counter[str]()
    for question in shapes_vqa(count, 0):
        scene, drawing = drawn[pixels(question, 0).tobytes()]
        assert drawing.masks.sum(axis=(1, 2)).min() >= 8  # all that is asked about shows
        present = [(thing.colour, thing.shape) for thing in scene.things]
        texts = [text for _, text in question.candidates]
        asks = {text.partition("? ")[0] for text in texts}
        answers = [text.partition("? ")[2] for text in texts]
        assert len(asks) == 1
        ask, answer = asks.pop(), answers[question.right]
        if found := re.fullmatch(r"is there (an?) (\w+) (\w+)", ask):
            kind, expected = "binary", {"yes", "no"}
            assert (found[1] == "an") == (found[2] == "orange")
            assert (answer == "yes") == ((found[2], found[3]) in present)
            asked[answer] += 1
        elif found := re.fullmatch(r"what colour is the (\w+)", ask):
            kind, expected = "other", set(COLOUR_WORDS)
            assert [colour for colour, shape in present if shape == found[1]] == [answer]
            asked["colour"] += 1
        elif found := re.fullmatch(r"what is the (\w+) shape", ask):
            kind, expected = "other", set(SHAPE_WORDS)
            assert [shape for colour, shape in present if colour == found[1]] == [answer]
            asked["shape"] += 1
        else:
            assert ask == "how many shapes are there"
            kind, expected = "other", {"one", "two", "three"}
            assert answer == {1: "one", 2: "two", 3: "three"}[len(present)]
            asked["number"] += 1
        assert question.kind == kind
        assert set(answers) == expected
        assert len(answers) == len(expected)
    assert asked["colour"] == asked["shape"] == asked["number"] == count / 4
    assert min(asked["yes"], asked["no"]) > 0.35 * count / 4


@few_and_many
def test_edited_captions_are_false_of_the_picture(drawn: Drawn, count: int) -> None:
    untrue, still_true, wrong = 0, Counter[str](), 0
    relations, sides = Counter[int](), 0
    for question in shapes_edits(count, 4):
        assert question.kind == "caption of edits"
        every = [pictured(question, i, drawn) for i in range(len(question.candidates))]
        right = every.pop(question.right)
        untrue += not borne_out(right.claims, right)
        for it in every:
            assert it.claims != right.claims
            still_true[it.claims.relation or ""] += borne_out(it.claims, it)
        wrong += len(every)
        if right.claims.relation is None:
            sides += any(it.claims.side not in (None, right.claims.side) for it in every)
            continue
        nouns_of = [nouns(it.claims)[:2] for it in (right, *every)]
        assert nouns_of[0][::-1] in nouns_of  # exchanged
        same = [it for it in every if nouns(it.claims)[:2] == nouns_of[0]]
        relations[len(same)] += 1
        assert all(it.claims.relation != right.claims.relation for it in same)
    assert untrue <= 0.02 * count
    # Things side by side may touch, which from the pixels is told apart from neither.
    assert still_true.total() == still_true["in front of"] <= 0.03 * wrong
    assert sides > 0.05 * count
    # Nothing is surely false of things in front of each other.
    assert relations[2] > relations[0] > 0
    assert relations.keys() == {0, 2}


@pytest.mark.parametrize("form", FORMS)
def test_questions_follow_from_the_seed(form: Form) -> None:
    first, again, other = (list(form(30, seed)) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        assert (a.kind, a.right, a.source) == (b.kind, b.right, b.source)
        for (image, text), (same, alike) in zip(a.candidates, b.candidates, strict=True):
            np.testing.assert_array_equal(image, same)
            assert text == alike
    assert not {q.source for q in first} & {q.source for q in other}
    assert len({q.source for q in first}) == 30


@pytest.mark.parametrize("form", FORMS)
def test_fewer_questions_are_the_first_ones_one_at_a_time(form: Form) -> None:
    endless = form(10**9, 7)
    for question, same in zip(form(5, 7), endless, strict=False):
        assert question.source == same.source
        np.testing.assert_array_equal(pixels(question, 0), pixels(same, 0))


@pytest.mark.parametrize("form", FORMS)
def test_pictures_are_bytes_of_one_size(form: Form) -> None:
    for question in form(20, 8):
        for i in range(len(question.candidates)):
            assert pixels(question, i).shape == (64, 64, 3)
            assert pixels(question, i).dtype == np.uint8


@pytest.mark.parametrize("form", FORMS)
def test_the_right_candidate_stands_anywhere(form: Form, undrawn: None) -> None:
    by_size: dict[int, Counter[int]] = {}
    for question in form(400, 9):
        by_size.setdefault(len(question.candidates), Counter())[question.right] += 1
    for size, places in by_size.items():
        expected = places.total() / size
        assert all(abs(places[i] - expected) < 4.5 * expected**0.5 for i in range(size))


def test_no_picture_is_pretraining_s_nor_another_forms() -> None:
    trained = {
        drawing.pixels.tobytes()
        for seed in (0, 1, 2, 3)
        for index in range(30)
        for drawing in draw_twins(seed, index)
    }
    for form in FORMS:
        pictures = {
            pixels(question, i).tobytes()
            for seed in (0, 1, 2, 3)
            for question in form(30, seed)
            for i in range(len(question.candidates))
        }
        assert len(pictures) == (240 if form is shapes_comvg else 120)
        assert not pictures & trained
        trained |= pictures
