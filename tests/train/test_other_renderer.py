"""The other renderer draws what it says: read back from pixels and words, not from its layout."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from held_out import Question, grade, write_questions
from numpy.typing import NDArray
from other_renderer import (
    PARTS,
    RELATIONS,
    Noun,
    Scene,
    change,
    image_choices,
    render,
    sample_scene,
    text_choices,
)
from PIL import Image, ImageColor

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from drawing import COLOURS, SHAPES

NAMED = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
CIRCLE_AND_SQUARE = (Noun("", "red", "circle"), Noun("", "blue", "square"))


def _named(text: str) -> set[tuple[str, ...]]:
    """(colour, shape) of everything a text names."""
    return {match.groups() for match in NAMED.finditer(text)}


def _where(picture: Image.Image, colour: str) -> NDArray[np.intp]:
    """Rows (y) and columns (x) of the pixels of a colour, (2, pixels)."""
    away = np.asarray(picture).astype(float) - ImageColor.getrgb(colour)
    return np.stack(np.nonzero(np.linalg.norm(away, axis=2) < 30))


def _pictures(relation: str, count: int = 12) -> list[Image.Image]:
    scene = Scene(CIRCLE_AND_SQUARE, relation)
    return [render(scene, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize(
    ("relation", "axis", "sign"),
    [("left of", 1, -1), ("right of", 1, 1), ("above", 0, -1), ("below", 0, 1)],
)
def test_direction_is_seen_in_the_pixels(relation: str, axis: int, sign: int) -> None:
    for picture in _pictures(relation):
        subject, other = (_where(picture, colour).mean(axis=1) for colour in ("red", "blue"))
        moved = subject - other
        assert sign * moved[axis] > abs(moved[1 - axis])


def test_inside_is_surrounded() -> None:
    for picture in _pictures("inside"):
        subject, other = (_where(picture, colour) for colour in ("red", "blue"))
        assert (subject.min(axis=1) > other.min(axis=1)).all()
        assert (subject.max(axis=1) < other.max(axis=1)).all()
        assert subject.shape[1] < other.shape[1]


def test_in_front_of_is_whole_and_hides_a_part() -> None:
    for picture in _pictures("in front of"):
        subject, other = (_where(picture, colour) for colour in ("red", "blue"))
        height, width = np.ptp(subject, axis=1) + 1
        assert height == pytest.approx(width, abs=2)
        assert subject.shape[1] == pytest.approx(math.pi / 4 * height * width, rel=0.05)
        away = np.linalg.norm(other.T - subject.mean(axis=1), axis=1)
        beside = np.count_nonzero((away > width / 2 + 2) & (away < width / 2 + 4))
        around = beside / (math.pi * ((width / 2 + 4) ** 2 - (width / 2 + 2) ** 2))
        assert 0.1 < around < 0.9


def test_sizes_differ() -> None:
    def area(size: str, seed: int) -> int:
        scene = Scene((Noun(size, "white", "star"), Noun("", "red", "ring")), "above")
        return _where(render(scene, np.random.default_rng(seed)), "white").shape[1]

    assert max(area("small", seed) for seed in range(8)) < min(
        area("large", seed) for seed in range(8)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_in_its_colour_and_smoothly(shape: str) -> None:
    picture = render(Scene((Noun("large", "black", shape),)), np.random.default_rng(0))
    assert picture.size == (256, 256)
    assert picture.mode == "RGB"
    inked = _where(picture, "black")
    box = np.ptp(inked, axis=1) + 1
    assert 0.25 < inked.shape[1] / box.prod() <= 1
    darkness = np.unique(np.asarray(picture.convert("L")))
    assert len(darkness) > 3, "edges are not antialiased"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("relation", RELATIONS)
def test_a_change_touches_its_part_alone(relation: str, part: str) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, relation)
        changed = change(scene, part, rng)
        same = [
            (a.colour, a.shape) == (b.colour, b.shape)
            for a, b in zip(scene.nouns, changed.nouns, strict=True)
        ]
        assert same == [name != part for name in ("subject", "object", "rest")][: len(same)]
        assert (changed.relation == relation) == (part != "predicate")


def test_image_choices_cover_everything_evenly() -> None:
    choices = list(image_choices(36, seed=5))
    kinds = [(choice.relation, choice.part) for choice in choices]
    assert all(kinds.count((r, p)) == 2 for r in RELATIONS for p in PARTS)
    assert all(len(_named(choice.text)) >= 2 for choice in choices)
    assert all(choice.relation in choice.text for choice in choices)


def test_only_one_text_of_ten_names_what_the_image_has() -> None:
    places = set()
    for choice in text_choices(40, seed=6):
        assert len(set(choice.texts)) == 10
        right = _named(choice.texts[choice.right])
        assert right
        assert [_named(text) <= right for text in choice.texts].count(True) == 1
        for colour, _ in right:
            assert _where(choice.image, colour).shape[1] > 50
        places.add(choice.right)
    assert len(places) > 5, "the right text should be anywhere among the ten"


def test_a_seed_fixes_pictures_and_texts() -> None:
    first, again, other = (list(text_choices(3, seed)) for seed in (7, 7, 8))
    assert [choice.texts for choice in first] == [choice.texts for choice in again]
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(first, again, strict=True))
    assert [choice.texts for choice in first] != [choice.texts for choice in other]


def test_grading_counts_a_tie_and_a_missing_score_as_wrong() -> None:
    kind = ("above", "subject")
    questions = [Question(kind, start, start + 2, right=1) for start in (0, 2, 4, 6)]
    scores = np.array([0.1, 0.2, 0.2, 0.1, 0.3, 0.3, np.nan, 0.2], np.float32)
    assert grade(scores, questions) == {kind: [True, False, False, False]}


def test_questions_refer_to_their_own_pairs(tmp_path: Path) -> None:
    pairs, questions = write_questions(tmp_path, count=6, seed=1)
    assert len(pairs) == 6 * 2 + 3 * 10
    assert [question.stop - question.start for question in questions] == [2] * 6 + [10] * 3
    assert sum(q.stop - q.start for q in questions) == len(pairs)
    assert all(path.is_file() for path, _ in pairs)
    for question in questions[:6]:
        assert len({text for _, text in pairs[question.start : question.stop]}) == 1
    for question in questions[6:]:
        assert len({path for path, _ in pairs[question.start : question.stop]}) == 1
