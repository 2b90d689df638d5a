"""Negatives drawn from other rows, and questions held out: nothing false, nothing shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsd_trt.errors import InputError
from dsd_trt.train.data.held_out import hold_out
from dsd_trt.train.data.likeness import image_keys, may_describe_the_same, words_of
from dsd_trt.train.data.negatives import COUNT, draw_negatives
from dsd_trt.train.question import Question

ANIMALS = [
    "a dog",
    "a cat",
    "a cow",
    "a hen",
    "a pig",
    "an ox",
    "a fox",
    "a bat",
    "an eel",
    "a fly",
]


def captioned(*rows: tuple[str, str]) -> list[Question]:
    """Questions whose negatives are yet to be drawn, by image and text."""
    return [Question("text", ((image, text),), 0, image, drawn=True) for image, text in rows]


def texts_of(question: Question) -> tuple[str, set[str]]:
    texts = [text for _, text in question.candidates]
    return texts.pop(question.right), set(texts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A dog.", "a  DOG"),
        ("a dog", "the dog"),
        ("a dog, asleep", "asleep: a dog!"),
        ("a dog", "a dog on the grass"),
        ("\ufb01sh", "fish"),  # a ligature
        ("caf\u00e9", "cafe\u0301"),  # composed, and decomposed
        ("\U0001f600", "\U0001f600"),  # no letters at all
    ],
)
def test_texts_that_may_describe_the_same(one: str, other: str) -> None:
    assert may_describe_the_same(words_of(one), words_of(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [("a red dog", "a blue dog"), ("a dog", "a cat"), ("the", "a"), ("\U0001f600", "\U0001f601")],
)
def test_texts_that_do_not(one: str, other: str) -> None:
    assert not may_describe_the_same(words_of(one), words_of(other))


def test_negatives_are_other_rows_texts_and_never_true_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "copy.png").write_bytes(b"the same picture")
    (tmp_path / "dog.png").write_bytes(b"the same picture")
    dog, copy = (str(tmp_path / name) for name in ("dog.png", "copy.png"))
    rows = [(dog, "a dog"), (copy, "an animal"), ("x", "A DOG"), ("y", "a cat"), ("z", "a dog, up")]
    found = draw_negatives(captioned(*rows), seed=1)
    assert texts_of(found[0]) == ("a dog", {"a cat"})
    assert texts_of(found[1]) == ("an animal", {"a cat"})
    assert texts_of(found[3])[1] <= {"a dog", "A DOG", "an animal", "a dog, up"}
    assert all(len(question.candidates) <= 1 + COUNT for question in found)


def test_negatives_are_drawn_evenly_and_follow_from_the_seed() -> None:
    questions = captioned(*((str(i), text) for i, text in enumerate(ANIMALS)))
    assert draw_negatives(questions, 5) == draw_negatives(questions, 5)
    counts = dict.fromkeys(ANIMALS, 0)
    for seed in range(300):
        for text in texts_of(draw_negatives(questions, seed)[0])[1]:
            counts[text] += 1
    assert counts.pop("a dog") == 0
    assert all(60 < count < 140 for count in counts.values())  # of 100


def test_rows_that_all_say_the_same_are_refused() -> None:
    with pytest.raises(InputError, match="a column of negatives"):
        draw_negatives(captioned(("a", "a dog"), ("b", "The dog."), ("c", "a dog runs")), 0)


def test_files_of_one_content_are_one_image(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2"), ("d", b"34")):
        (tmp_path / name).write_bytes(content)
    keys = image_keys([tmp_path / name for name in "abcd"] + [tmp_path / "gone"])
    assert len(set(keys.values())) == 4
    assert keys[str(tmp_path / "a")] == keys[str(tmp_path / "b")]


# Questions held out


def right_texts(questions: list[Question]) -> set[frozenset[str]]:
    return {words_of(question.candidates[question.right][1]) for question in questions}


def sources(questions: list[Question]) -> set[str]:
    return {question.source for question in questions}


@pytest.mark.parametrize("seed", range(5))
def test_no_image_and_no_right_text_is_in_both(seed: int) -> None:
    rows = [(f"{i // 2}", f"{ANIMALS[i % 10]} {'' if i % 3 else i}") for i in range(40)]
    parts = hold_out(draw_negatives(captioned(*rows), seed), 0.15, seed)
    assert len(parts.learned) + len(parts.held) == 40
    assert 3 <= len(parts.held) <= 9
    assert not sources(parts.learned) & sources(parts.held)
    if "right text" in parts.apart:
        assert not right_texts(parts.learned) & right_texts(parts.held)


def test_negatives_of_the_parts_are_their_own() -> None:
    rows = [(str(i), f"{ANIMALS[i % 10]} {i}") for i in range(60)]
    parts = hold_out(draw_negatives(captioned(*rows), 0), 0.2, 0)
    seen = [
        {text for q in part for _, text in q.candidates} for part in (parts.learned, parts.held)
    ]
    assert len(parts.held) == 12
    assert not seen[0] & seen[1]


def test_class_names_are_in_both_parts_but_images_are_not() -> None:
    rows = [(str(i), ANIMALS[i % 2]) for i in range(40)]
    parts = hold_out(draw_negatives(captioned(*rows), 0), 0.15, 0)
    assert len(parts.held) == 6
    assert parts.apart == "no image in both"
    assert not sources(parts.learned) & sources(parts.held)


def test_nothing_is_held_out_of_one_image_or_if_not_asked() -> None:
    rows = [("one", text) for text in ANIMALS]
    pairs = [Question("text", (row, ("one", "a stone")), 0, "one") for row in rows]
    assert hold_out(pairs, 0.15, 0).held == []
    many = draw_negatives(captioned(*((str(i), text) for i, text in enumerate(ANIMALS))), 0)
    assert hold_out(many, 0, 0).learned == many
    assert "none held out" in hold_out(many, 0, 0).lines()[0]


def test_pictures_in_memory_are_told_apart() -> None:
    pictures = [np.full((2, 2, 3), i, np.uint8) for i in range(8)]
    questions = [
        Question("text", ((it, "a dog"), (it, f"a cat {i}")), 0, str(i))
        for i, it in enumerate(pictures)
    ]
    parts = hold_out(questions, 0.25, 0)
    assert (len(parts.learned), len(parts.held)) == (6, 2)
