"""Finding and reading the files of data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsd_trt.errors import InputError
from dsd_trt.train.data.files import find_coco_image, find_file, read_csv, read_text, stream_json


def test_the_first_folder_that_has_a_file_wins(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders[1:]:
        folder.mkdir()
        (folder / "1.jpg").touch()
    (folders[1] / "2.jpg").mkdir()
    assert find_file("1.jpg", folders, "home") == folders[1] / "1.jpg"
    with pytest.raises(InputError) as error:
        find_file("2.jpg", folders, "their home")
    a, b, c = (repr(str(folder)) for folder in folders)
    assert str(error.value) == f"no file '2.jpg' in {a} or {b} or {c}; it comes from their home"
    assert error.value.exit_code == 2


@pytest.mark.parametrize("folder", ["val2014", "images/val2014", "images"])
def test_coco_images_lie_in_one_of_three_folders(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "x.jpg").touch()
    assert find_coco_image("x.jpg", tmp_path, "val") == tmp_path / folder / "x.jpg"
    with pytest.raises(InputError, match=r"no file 'y.jpg' .* COCO site .*, 2014 val images"):
        find_coco_image("y.jpg", tmp_path, "val")


def test_text_is_utf_8_and_loses_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeffä".encode())
    assert read_text(path) == "ä"
    path.write_bytes("ok\nä".encode("latin-1"))
    with pytest.raises(InputError, match=r"text' is not UTF-8 text \(line 2\)"):
        read_text(path)
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_text(tmp_path)


def test_csv_rows_come_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('more,b,a\r\n1,"x\ny",2\r\n\r\n3,"",4\r\n', encoding="utf-8", newline="")
    assert list(read_csv(path, ("a", "b"))) == [
        (3, {"more": "1", "b": "x\ny", "a": "2"}),
        (5, {"more": "3", "b": "", "a": "4"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.csv is empty; the columns are a,b"),
        ("a,c\n1,2\n", "rows.csv, line 1: no column 'b' among 'a', 'c'; needed are a,b"),
        ("a,b\n1,2\n3\n", "rows.csv, line 3: 1 cell under 2 columns"),
        ("a,b\n\n1,2,3\n", "rows.csv, line 3: 3 cells under 2 columns"),
        ('a,b\n1,"2" x\n', "rows.csv, line 2: not valid CSV: "),
        ('a,b\n1,"2\n', "rows.csv, line 2: not valid CSV: "),
    ],
)
def test_malformed_csv_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        list(read_csv(path, ("a", "b")))


def test_json_lists_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    head = json.dumps({"info": {"rows": [1]}, "rows": [{"b": 1.5, "a": 2, "c": []}]})[:-2]
    path.write_text(head + ', {"a": 3, "b": "x"}], "more": [0]}', encoding="utf-8")
    assert list(stream_json(path, "rows", ("a", "b"))) == [(2, 1.5), (3, "x")]
    # What comes first is given out before what is broken is read.
    path.write_text(head + " " * 200_000 + "oops", encoding="utf-8")
    rows = stream_json(path, "rows", ("a",))
    assert next(rows) == (2,)
    with pytest.raises(InputError, match=r"list.json is not valid JSON: "):
        next(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "list.json is not valid JSON: "),
        (b'{"rows": [{"a": 1, "b": 2}', "list.json is not valid JSON: "),
        (b'{"rows": [{"a": "\xff", "b": 2}]}', "list.json is not valid JSON: "),
        (b'{"rows": []}', "list.json has no list 'rows', or an empty one"),
        (b"[]", "list.json has no list 'rows', or an empty one"),
        (b'{"rows": [{"a": 1, "b": 2}, {"a": 1}]}', r"rows\[1\] is not an object with a, b"),
        (b'{"rows": [3]}', r"rows\[0\] is not an object with a, b"),
    ],
)
def test_other_json_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(stream_json(path, "rows", ("a", "b")))
