"""Tables of anybody's data: every form, every file format, every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dsd_trt.commands.inputs import read_pairs
from dsd_trt.errors import InputError
from dsd_trt.tables.columns import ColumnNames
from dsd_trt.tables.labelled import read_labelled
from dsd_trt.tables.table import Table
from dsd_trt.train.data.catalogue import open_dataset
from dsd_trt.train.data.labelled import labelled_pairs
from dsd_trt.train.data.negatives import draw_negatives
from dsd_trt.train.data.table import read_table
from dsd_trt.train.question import Question

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

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
        (tmp_path / name).write_text(name)
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


def written(
    root: Path, form: str, rows: list[dict[str, object]], as_csv: Callable[[Path], Path]
) -> Path:
    if form == "csv":
        return as_csv(root)
    if form == "jsonl":
        return write_jsonl(root, rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "table.parquet")
    return root / "table.parquet"


def told(question: Question, root: Path) -> tuple[str, str, list[str]]:
    """Image, right text and wrong texts."""
    assert question.kind == "text"
    assert {image for image, _ in question.candidates} == {root / question.source}
    texts = [text for _, text in question.candidates]
    return question.source, texts.pop(question.right), texts


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_labels_make_a_question_of_each_right_text(form: str, root: Path) -> None:
    path = written(root, form, LABELS, labels_csv)
    assert [told(question, root) for question in read_table(path, seed=0).questions] == [
        ("a.png", "a dog", ["a cat", "a fish"]),
        ("a.png", "an animal", ["a cat", "a fish"]),
        ("b.png", "a cat, asleep", ["a cow"]),
    ]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_negatives_make_a_question_of_each_row(form: str, root: Path) -> None:
    path = written(root, form, NEGATIVES, negatives_csv)
    assert [told(question, root) for question in read_table(path, seed=0).questions] == [
        ("b.png", "a cat, asleep", ["a cow"]),
        ("a.png", "a dog", ["a cat", "a fish"]),
    ]


def test_a_table_is_a_pairs_file_with_one_more_column(root: Path) -> None:
    assert [pair.text for pair in read_pairs(labels_csv(root))] == [row["text"] for row in LABELS]


def test_places_follow_from_the_seed(root: Path) -> None:
    path = labels_csv(root)
    assert read_table(path, 4) == read_table(path, 4)
    places = [
        question.right for seed in range(200) for question in read_table(path, seed).questions
    ]
    assert all(places.count(place) > 150 for place in (0, 1))  # of about 233
    assert 80 < places.count(2) < 190  # of about 133: two of three questions have a third text


def asked(root: Path, text: str) -> list[tuple[str, str, list[str]]]:
    """Questions of a CSV table."""
    return [told(question, root) for question in read_table(write_csv(root, text), 0).questions]


@pytest.mark.parametrize(
    "text",
    [
        'image,text,negatives\na.png,a dog,"[""a cat"", ""a fish""]"\n',
        "image,text,negatives\na.png,a dog,a cat|a fish\n",
        "image,text,negatives\na.png,a dog, a cat | a fish |\n",
        "image,text,negative_1,negative_2\na.png,a dog,a cat,a fish\n",
        "negative_2,image,negative_1,text,negative_3\na cat,a.png,a fish,a dog,\n",
    ],
)
def test_negatives_have_many_forms(text: str, root: Path) -> None:
    ((source, right, wrong),) = asked(root, text)
    assert (source, right, sorted(wrong)) == ("a.png", "a dog", ["a cat", "a fish"])


def test_columns_have_the_names_the_user_says(root: Path) -> None:
    path = write_csv(root, "file,caption,ok,key\na.png,a dog,1,7\na.png,a cat,0,8\n")
    columns = ColumnNames(image="file", text="caption", label="ok", id="key")
    (question,) = read_table(path, 0, columns).questions
    assert (question.source, {text for _, text in question.candidates}) == ("7", {"a dog", "a cat"})


def test_rows_that_make_no_question_are_counted_with_the_reason(root: Path) -> None:
    found = read_table(
        write_csv(
            root,
            "image,text,label\na.png,a dog,1\na.png,a cat,0\nb.png,a cow,0\na.png,an ox,\n"
            "gone.png,a hen,1\na.png,,1\na.png,a pig,2\n",
        ),
        0,
    )
    assert (found.rows, len(found.questions)) == (7, 1)
    assert sorted(found.unused.values()) == [1, 1]
    assert [str(failure) for failure in found.failures] == [
        f"table.csv, line 6: no image file '{root / 'gone.png'}'",
        "table.csv, line 7: text is empty",
        "table.csv, line 8: label must be 0 or 1, no or yes, false or true, got '2'",
    ]


def test_a_text_is_no_negative_of_itself_in_capitals(root: Path) -> None:
    """Tokenizers see none, so that both have the same score."""
    path = write_csv(root, "image,text,negatives\na.png,a dog,A  Dog\nb.png,a cow,an ox\n")
    found = read_table(path, 0)
    assert [str(failure) for failure in found.failures] == [
        "table.csv, line 2: 'a dog' is among its own negatives"
    ]
    assert [str(it) for it in read_labelled(Table.open(path)).failures] == [
        "table.csv, line 2: 'a dog' is among its own negatives"
    ]
    path = write_csv(root, "image,text,label\na.png,a dog,1\na.png,A DOG,0\nb.png,a cow,1\n")
    (failure,) = read_table(path, 0).failures
    assert "'a dog' has the labels 0 and 1" in str(failure)


def test_an_image_without_negatives_takes_texts_of_others(root: Path) -> None:
    path = write_csv(root, "image,text,label\na.png,a dog,1\na.png,a cat,0\nb.png,a cow,1\n")
    one, other = draw_negatives(read_table(path, 0).questions, 0)
    assert told(one, root) == ("a.png", "a dog", ["a cat"])
    assert told(other, root) == ("b.png", "a cow", ["a dog"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,text,label\n", "table.csv has no rows"),
        ("image,label\na.png,1\n", "no column 'text' among 'image', 'label'. .*--text-column"),
        (
            "image,text,label\na.png,a dog,2\n",
            "1 row, and none .*line 2: label must be 0",
        ),
        (
            "image,text,label\na.png,a dog,\n",
            "1 row, and none .* because none has a label",
        ),
        ("image,text,label\na.png,a dog,0\n", "no row of .* that can be used has the label 1"),
        ("image,text,label\na.png,a dog,0\na.png,a dog,1\n", "has the labels 0 and 1"),
        ("image,text,label,label\na.png,a dog,1,0\n", "the column 'label' is there twice"),
        ("image,text,label,negatives\na.png,a dog,1,a cat\n", "has both 'label' and 'negatives'"),
        ('image,text,negatives\na.png,a dog,"[""a dog""]"\n', "'a dog' is among its own negatives"),
        *(
            (f"image,text,negatives\na.png,a dog,{cell}\n", "line 2: negatives ")
            for cell in (
                "",
                "[]",
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
def test_a_table_of_which_nothing_can_be_used_is_refused(
    text: str, message: str, root: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_table(write_csv(root, text), seed=0)


def test_columns_that_nobody_uses_may_hold_anything(root: Path) -> None:
    long = "x" * 200_000
    text = f"html,image,text,label,html,,\n{long},a.png,a dog,1,{long},,\n,a.png,a cat,0,,,\n"
    assert asked(root, text) == [("a.png", "a dog", ["a cat"])]


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none.csv': No such file or directory"):
        read_table(tmp_path / "none.csv", seed=0)


def test_images_may_lie_in_another_folder_than_the_table(root: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    table = labels_csv(root).replace(tmp_path / "tables" / "table.csv")
    with pytest.raises(InputError, match="--images"):
        open_dataset(str(table), Path(), "train", 0)
    there = open_dataset(str(table), Path(), "train", 0, images=root)
    assert [*there] == [*open_dataset(str(labels_csv(root)), Path(), "train", 0)]
    part = open_dataset(str(table), Path(), "test", 0, images=root)
    found = labelled_pairs(table, ColumnNames(), part, 0, None, images=root)
    assert {pair.image for pair in found} == {root / "a.png", root / "b.png"}
    with pytest.raises(InputError, match="comvg is no table: omit --images"):
        open_dataset("comvg", Path(), "train", 0, images=root)


@pytest.mark.parametrize(
    ("header", "told"),
    [("hard_negative", True), ("negative", True), ("negative_1", False), ("note", False)],
)
def test_a_column_that_seems_to_have_negatives_is_told(root: Path, header: str, told: bool) -> None:
    """Other rows' texts are drawn instead, which is another task."""
    rows = "a.png,a dog,a cat\nb.png,a cow,an ox\n"
    path = write_csv(root, f"image,text,{header}\n{rows}")
    lines = "\n".join(open_dataset(path.name, path.parent, "train", 0).lines())
    assert (f"the column {header!r} is read as such if it is called negative_1" in lines) == told
    renamed = read_table(write_csv(root, f"image,text,negative_1\n{rows}"), 0).questions
    assert {text for _, text in renamed[0].candidates} == {"a dog", "a cat"}
