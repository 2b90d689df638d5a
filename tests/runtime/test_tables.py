"""Tables of users, against pyarrow's own readers where these read the same."""

from __future__ import annotations

import csv
import datetime
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import click
import pyarrow
import pytest
from click.testing import CliRunner
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from dsd_trt.commands.options import column_options
from dsd_trt.errors import InputError
from dsd_trt.tables.columns import ColumnNames
from dsd_trt.tables.table import Table

ROWS = [
    {"id": "1", "image": "a.png", "text": "a dog, red", "note": ""},
    {"id": "02", "image": "b.png", "text": 'it says "go"', "note": " spaces "},
    {"id": "3", "image": "ü/c.png", "text": "two\nlines", "note": "1e5"},
]


def read(path: Path) -> list[dict[str, object]]:
    return [dict(row.values) for row in Table.open(path).sound_rows()]


def as_csv(delimiter: str = ",", end: str = "\n") -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(ROWS[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return buffer.getvalue().encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", as_csv()),
        ("t.CSV", b"\xef\xbb\xbf" + as_csv(end="\r\n")),
        ("t.csv", as_csv().replace(b"\n", b"\n\n  \n").replace(b"two\n\n  \n", b"two\n")),
        ("t.csv", as_csv(";")),
        ("t.tsv", as_csv("\t")),
        ("table", as_csv("\t")),
        ("table", "".join(json.dumps(row) + "\n" for row in ROWS).encode()),
        ("t.jsonl", "\n\n".join(json.dumps(row) for row in ROWS).encode("utf-8-sig")),
    ],
)
def test_the_same_rows_are_read_from_every_form(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == ROWS
    assert Table.open(tmp_path / name).columns == tuple(ROWS[0])


@pytest.mark.parametrize("name", ["t.parquet", "table"])
def test_parquet_keeps_its_types(tmp_path: Path, name: str) -> None:
    columns = {
        "image": ["a.png", "b.png", None],
        "n": pyarrow.array([1, None, -(2**62)], pyarrow.int64()),
        "day": [datetime.date(2026, 11, 29)] * 3,
        "nested": [{"x": [1.5]}, None, {"x": []}],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / name, row_group_size=2)
    assert read(tmp_path / name) == pyarrow.table(columns).to_pylist()
    (few,) = {tuple(row.values) for row in Table.open(tmp_path / name).rows(["n"])}
    assert few == ("n",)


def test_random_csv_is_what_another_reader_reads(tmp_path: Path) -> None:
    chance = random.Random(3)
    path = tmp_path / "t.csv"
    for _ in range(60):
        cells = [
            ["".join(chance.choices('ab,"\n é;', k=chance.randrange(6))) for _ in range(3)]
            for _ in range(5)
        ]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator=chance.choice(["\n", "\r\n"])).writerows(
                [("x", "y", "z"), *cells]
            )
        other = arrow_csv.read_csv(
            path,
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys("xyz", "string")),
        )
        assert read(path) == other.to_pylist()


def test_a_malformed_row_keeps_its_place_and_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "image,text\na.png,dog\nb.png,red, dog\nc.png\n"
        'd.png,"a"b\ne.png,"cat\nf.png,"x y"\n,\ng.png,"open\nh.png,hen\n'
    )
    rows = [(it.values["image"], it.error) for it in Table.open(tmp_path / "t.csv").rows()]
    quote = "not valid CSV: ',' expected after '\"'"
    assert rows == [
        ("a.png", None),
        ("b.png", '3 cells under 2 columns; put a text that has commas in "quotes"'),
        ("c.png", "1 cell under 2 columns"),
        ("d.png", quote),
        ("e.png", quote),
        ("f.png", None),
        ("", None),
        ("g.png", "not valid CSV: a quote is not closed"),
        ("h.png", None),
    ]
    places = [it.place for it in Table.open(tmp_path / "t.csv").rows()]
    assert places == [f"line {line}" for line in range(2, 11)]
    (tmp_path / "t.jsonl").write_text('[1]\n{"a": 1}\n\n{"a": \n{"a": 1, "a": 2}\n{"a": 3}\n')
    assert [(it.place, it.error) for it in Table.open(tmp_path / "t.jsonl").rows()] == [
        ("line 1", "not a JSON object"),
        ("line 2", None),
        ("line 4", "not valid JSON: Expecting value at character 6"),
        ("line 5", "not valid JSON: field '(root)' has the key 'a' twice"),
        ("line 6", None),
    ]
    with pytest.raises(InputError, match=r"t\.csv, line 3: 3 cells under 2 columns"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("t.csv", b"", "t.csv is empty; write a header"),
        ("t.csv", b"image,text\na.png,caf\xe9\n", r"'\S+t.csv' is not UTF-8 text \(line 2\)"),
        ("t.csv", b"image\ra\r" + b"x" * 3_000_000 + b"\r\0", r"UTF-8 text \(line 4\)"),
        ("t.jsonl", b'{"a": 1}\n' * 200_000 + b'{"a": "\xe9"}', r"UTF-8 text \(line 200001\)"),
        ("t.csv", "image,text\n".encode("utf-16"), "save it as UTF-8"),
        ("t.parquet", b"image,text\n", "no Parquet file, though its name ends in .parquet"),
        ("t", b"PAR1 and no more", "no whole Parquet file"),
        ("t.csv", b"\x1f\x8b\x08\0\0", "compressed: gunzip unpacks it"),
        ("t.csv", b"PK\x03\x04\x14\0", "a spreadsheet: save it as CSV"),
        ("t.json", b'[{"image": "a"}]', "a JSON list; write its objects on a line each"),
        ("t.csv", b'image,"te"xt\n', "line 1: not valid CSV"),
    ],
)
def test_what_is_no_table_is_named_with_a_remedy(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        read(tmp_path / name)


def test_a_missing_column_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url,caption,caption\na,b,c\n")
    table = Table.open(tmp_path / "t.csv")
    with pytest.raises(InputError) as told:
        ColumnNames().required(table, "image")
    assert str(told.value) == (
        f"{tmp_path / 't.csv'}, line 1: no column 'image' among 'url', 'caption', 'caption_2'. "
        "Name the column of the images' paths: --image-column NAME"
    )
    assert ColumnNames(image="url").required(table, "image") == "url"
    assert ColumnNames().optional(table, "label") is None
    with pytest.raises(InputError, match="no column 'x' among"):
        ColumnNames(label="x").optional(table, "label")
    with pytest.raises(InputError, match="the column 'caption' is there twice"):
        ColumnNames(text="caption").required(table, "text")
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n{"b": 1}\n')
    with pytest.raises(InputError, match="no column 'text' among 'a', 'b'"):
        ColumnNames().required(Table.open(tmp_path / "t.jsonl"), "text")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *[(1, True), (0, False), (" 1 ", True), ("0.0", False), (True, True), ("FALSE", False)],
        *[(None, None), ("", None), (float("nan"), None), (1.0, True)],
    ],
)
def test_labels(tmp_path: Path, value: object, label: bool | None) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"y": value}))
    (row,) = Table.open(tmp_path / "t.jsonl").rows()
    assert row.label("y") is label
    assert row.label("absent") is None


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (5, "t must be text, got int 5"),
        (["a"], "t must be text, got a list; write a row for each of its texts"),
        ('["a dog", "a cat"]', "t must be text, got a list; write a row for each of its texts"),
        ("['a dog' 'a cat']", "t must be text, got a list; write a row for each of its texts"),
        (" \n", "t is empty"),
        (None, "t is empty"),
        ("a\0", "t has a NUL character"),
    ],
)
def test_what_is_no_text_is_told(tmp_path: Path, value: object, complaint: str) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"t": value}))
    (row,) = Table.open(tmp_path / "t.jsonl").rows()
    with pytest.raises(ValueError, match=complaint):
        row.text("t")
    if value == 5:
        with pytest.raises(ValueError, match="t must be 0 or 1, no or yes, false or true, got '5'"):
            row.label("t")


@pytest.mark.parametrize(
    ("value", "label"),
    [("Yes", True), ("no ", False), (True, True), ("1.0", True), (0, False), ("FALSE", False)],
)
def test_what_a_label_may_be(tmp_path: Path, value: object, label: bool) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"t": value}))
    (row,) = Table.open(tmp_path / "t.jsonl").rows()
    assert row.label("t") is label


def test_the_options_name_columns() -> None:
    @click.command()
    @column_options("image", "label")
    def command(columns: ColumnNames) -> None:
        click.echo(repr(columns))

    run: Callable[..., str] = lambda *given: CliRunner().invoke(command, given).output  # noqa: E731
    assert "image='x', text=None, label=None" in run("--image-column", "x")
    assert "[default: label]" in run("--help")
    assert "--text-column" not in run("--help")
