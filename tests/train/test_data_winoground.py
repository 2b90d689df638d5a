"""Winoground, from a hand-written file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dsd_trt.errors import InputError
from dsd_trt.train.data.winoground import read_winoground

ITEMS: list[dict[str, object]] = [
    {
        "id": 0,
        "image_0": "ex_0_img_0",
        "image_1": "ex_0_img_1",
        "caption_0": "an old person kisses a young person",
        "caption_1": "a young person kisses an old person",
        "tag": "Adjective-Age",
        "num_main_preds": 1,
    },
    {"id": "b", "image_0": "x.jpg", "image_1": "y.jpg", "caption_0": "a b", "caption_1": "b a"},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, ITEMS)
    (tmp_path / "images").mkdir()
    for name in ("images/ex_0_img_0.png", "images/ex_0_img_1.png", "x.jpg", "images/y.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def write(root: Path, items: list[dict[str, object]]) -> None:
    lines = "".join(json.dumps(item) + "\n" for item in items)
    (root / "examples.jsonl").write_text(lines, encoding="utf-8")


def test_an_item_is_asked_four_ways(root: Path) -> None:
    a, b = root / "images" / "ex_0_img_0.png", root / "images" / "ex_0_img_1.png"
    old = "an old person kisses a young person"
    young = "a young person kisses an old person"
    expected = [
        ("text", (a, old), (a, young)),
        ("text", (b, young), (b, old)),
        ("image", (a, old), (b, old)),
        ("image", (b, young), (a, young)),
    ]
    questions = list(read_winoground(root, seed=0))
    assert [question.source for question in questions] == ["0"] * 4 + ["b"] * 4
    for question, (kind, right, wrong) in zip(questions, expected, strict=False):
        assert question.kind == kind
        assert question.candidates[question.right] == right
        assert question.candidates[1 - question.right] == wrong
    assert questions[4].candidates[questions[4].right] == (root / "x.jpg", "a b")


def test_right_candidates_stand_anywhere(root: Path) -> None:
    asked = [tuple(question.right for question in read_winoground(root, s)) for s in range(100)]
    assert len(set(asked)) > 50
    places = Counter(place for places in asked for place in places)
    assert abs(places[0] - 400) < 4 * (800 / 4) ** 0.5
    assert list(read_winoground(root, 3)) == list(read_winoground(root, 3))


def test_a_missing_image_is_named_with_its_origin(root: Path) -> None:
    (root / "images" / "ex_0_img_1.png").unlink()
    with pytest.raises(InputError) as error:
        next(read_winoground(root, seed=0))
    assert str(error.value) == (
        f"no file 'ex_0_img_1.png' in {str(root / 'images')!r} or {str(root)!r}; "
        "it comes from the Winoground data set of facebook on the Hugging Face hub"
    )


def test_a_missing_file_is_named_with_its_origin(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file 'examples.jsonl' in .* Winoground"):
        next(read_winoground(tmp_path, seed=0))


@pytest.mark.parametrize(
    "broken", [{"id": None}, {"caption_1": None}, {"caption_0": 3}, {"image_0": " "}]
)
def test_a_malformed_item_is_named_by_its_line(broken: dict[str, object], root: Path) -> None:
    item = {name: value for name, value in (ITEMS[1] | broken).items() if value is not None}
    write(root, [*ITEMS, item])
    with pytest.raises(InputError) as error:
        list(read_winoground(root, seed=0))
    assert str(error.value) == (
        f"{root / 'examples.jsonl'}, line 3: it must have id,image_0,image_1,caption_0,caption_1"
    )


def test_lines_that_are_not_json_are_refused(root: Path) -> None:
    (root / "examples.jsonl").write_text("[]\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"examples.jsonl, line 1: not a JSON object"):
        next(read_winoground(root, seed=0))
