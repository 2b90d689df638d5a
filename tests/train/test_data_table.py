"""Tables of anybody's data: both forms, both file formats, every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsd_trt.commands.inputs import read_pairs
from dsd_trt.errors import InputError
from dsd_trt.train.data.table import read_table
from dsd_trt.train.question import Question

LABELS: list[dict[str, object]] = [
    {"image": "a.png", "text": "a dog", "label": 1},
    {"image": "b.png", "text": "a cow", "label": 0},
    {"image": "a.png", "text": "a cat", "label": 0},
    {"image": "b.png", "text": "a cat, asleep", "label": 1},
    {"image": "a.png", "text": "an animal", "label": 1},
    {"image": "a.png", "text": "a fish", "label": 0},
]
NEGATIVES: list[dict[str, object]] = [
    {"image": "b.png", "text": "a cat, asleep", "negatives": ["a cow"]},
    {"image": "a.png", "text": "a dog", "negatives": ["a cat", "a fish"]},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    return tmp_path


def write_jsonl(root: Path, rows: list[dict[str, object]]) -> Path:
    path = root / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(root: Path, text: str) -> Path:
    path = root / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def labels_csv(root: Path) -> Path:
    return write_csv(
        root,
        "label,image,text\n1,a.png,a dog\n0,b.png,a cow\n0,a.png,a cat\n"
        '1,b.png,"a cat, asleep"\n 1,a.png,an animal\n0,a.png,a fish\n',
    )


def negatives_csv(root: Path) -> Path:
    return write_csv(
        root,
        'image,text,negatives\nb.png,"a cat, asleep","[""a cow""]"\n'
        'a.png,a dog,"[""a cat"", ""a fish""]"\n',
    )


def told(question: Question, root: Path) -> tuple[str, str, list[str]]:
    """Image, right text and wrong texts."""
    assert question.kind == "text"
    assert {image for image, _ in question.candidates} == {root / question.source}
    texts = [text for _, text in question.candidates]
    return question.source, texts.pop(question.right), texts


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_labels_make_a_question_of_each_right_text(form: str, root: Path) -> None:
    path = labels_csv(root) if form == "csv" else write_jsonl(root, LABELS)
    assert [told(question, root) for question in read_table(path, seed=0)] == [
        ("a.png", "a dog", ["a cat", "a fish"]),
        ("a.png", "an animal", ["a cat", "a fish"]),
        ("b.png", "a cat, asleep", ["a cow"]),
    ]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_negatives_make_a_question_of_each_row(form: str, root: Path) -> None:
    path = negatives_csv(root) if form == "csv" else write_jsonl(root, NEGATIVES)
    assert [told(question, root) for question in read_table(path, seed=0)] == [
        ("b.png", "a cat, asleep", ["a cow"]),
        ("a.png", "a dog", ["a cat", "a fish"]),
    ]


def test_a_table_is_a_pairs_file_with_one_more_column(root: Path) -> None:
    assert [pair.text for pair in read_pairs(labels_csv(root))] == [row["text"] for row in LABELS]


def test_places_follow_from_the_seed(root: Path) -> None:
    path = labels_csv(root)
    assert list(read_table(path, 4)) == list(read_table(path, 4))
    places = [question.right for seed in range(200) for question in read_table(path, seed)]
    assert all(places.count(place) > 150 for place in (0, 1))  # of about 233
    assert 80 < places.count(2) < 190  # of about 133: two of three questions have a third text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " has no rows"),
        ("image,text,label\n", " has no rows"),
        (
            "image,label\na.png,1\n",
            ", line 1: no column 'text' among 'image', 'label'; needed are image,text",
        ),
        (
            "image,text\na.png,a dog\n",
            ", line 2: the columns are image,text,label or image,text,negatives",
        ),
        ("image,text,label\na.png,a dog,2\n", ", line 2: label must be 0 or 1, got '2'"),
        ("image,text,label\na.png,a dog,\n", ", line 2: label must be 0 or 1, got ''"),
        ("image,text,label\na.png,,1\n", ", line 2: image and text must both be there, as text"),
        (
            "image,text,label\na.png,a dog,1\nb.png,a cat,1\nb.png,a dog,0\n",
            ": the image 'a.png' has no text with label 0",
        ),
        ("image,text,label\na.png,a dog,0\n", ": the image 'a.png' has no text with label 1"),
        (
            "image,text,label,label\na.png,a dog,1,0\n",
            ", line 1: the column 'label' is there twice",
        ),
        (
            "image,text,label\na.png,a dog,0\na.png,a dog,1\n",
            ": 'a dog' is both right and wrong for the image 'a.png'",
        ),
        (
            'image,text,negatives\na.png,a dog,"[""a dog""]"\n',
            ": 'a dog' is both right and wrong for the image 'a.png'",
        ),
        *(
            (
                f"image,text,negatives\na.png,a dog,{cell}\n",
                ', line 2: negatives must be a list of texts, such as ["a dog", "a cat"]',
            )
            for cell in (
                "a cat",
                "[]",
                "7",
                '"[""a"", 7]"',
                '"["" ""]"',
                r'"[""\ud83d""]"',
                "[NaN]",
                r'"[""\u0000""]"',
                "[" * 2000,
            )
        ),
    ],
)
def test_a_malformed_table_is_refused(text: str, message: str, root: Path) -> None:
    path = write_csv(root, text)
    with pytest.raises(InputError) as error:
        list(read_table(path, seed=0))
    assert str(error.value) == f"{path}{message}"


def test_a_malformed_line_of_json_is_named(root: Path) -> None:
    path = write_jsonl(root, [*NEGATIVES, {"image": "a.png", "text": "a dog"}])
    with pytest.raises(InputError, match=r"table.jsonl, line 3: negatives must be a list of texts"):
        list(read_table(path, seed=0))
    path = write_jsonl(root, [*LABELS, {"image": "a.png", "text": "a dog"}])
    with pytest.raises(InputError, match=r"table.jsonl, line 7: label must be 0 or 1"):
        list(read_table(path, seed=0))
    path = write_jsonl(root, [*NEGATIVES, {**NEGATIVES[0], "image": "gone.png"}])
    with pytest.raises(InputError, match=r"table.jsonl, line 3: no image file .*gone.png"):
        list(read_table(path, seed=0))


def test_columns_that_nobody_uses_may_hold_anything(root: Path) -> None:
    long = "x" * 200_000
    path = write_csv(
        root,
        f"html,image,text,label,html,,\n{long},a.png,a dog,1,{long},,\n,a.png,a cat,0,,,\n",
    )
    (question,) = read_table(path, seed=0)
    assert told(question, root) == ("a.png", "a dog", ["a cat"])


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none.csv': No such file or directory"):
        next(read_table(tmp_path / "none.csv", seed=0))
