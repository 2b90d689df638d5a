"""`dsd-trt score --pairs`: a row out for each row in, whatever the rows are like."""

from __future__ import annotations

import csv
import datetime
import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
from bundles import RESOLUTION, closed_form, probability
from full_disk import files_of_at_most
from in_process import Run
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

pytest_plugins = ("in_process",)

Pixels = dict[str, NDArray[np.uint8]]
TEXTS = ["a red circle", "dog", "a blue square, a green dog"]


@pytest.fixture
def pixels(tmp_path: Path) -> Pixels:
    """Images `0.png` to `4.png`; beside them, one that is none."""
    generator = np.random.default_rng(11)
    found = {}
    for name in (f"{place}.png" for place in range(5)):
        noise = generator.integers(0, 256, (RESOLUTION, RESOLUTION, 3))
        found[name] = (noise * generator.uniform(0, 1, 3)).astype(np.uint8)
        Image.fromarray(found[name]).save(tmp_path / name)
    (tmp_path / "broken.png").write_text("no image")
    return found


@pytest.fixture
def run(dsd_trt: Callable[..., Run], pixels: Pixels) -> Callable[..., Run]:
    return lambda *arguments: dsd_trt("score", *arguments)


def rows_of(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows with duplicates, missing and broken images, and texts that are none."""
    chance = random.Random(seed)
    return [
        {
            "id": f"{number:03}",
            "image": chance.choice([*(f"{it}.png" for it in range(5)), "broken.png", "gone.png"]),
            "text": chance.choice([*TEXTS, *TEXTS, f"dog {number}", " "]),
            "note": chance.choice(["", ' "x", y\n', "01", "é"]),
        }
        for number in range(count)
    ]


def as_csv(rows: list[dict[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def expected(row: dict[str, str], pixels: Pixels) -> tuple[float | None, str]:
    """Score of a row, and a part of its error."""
    if not row["text"].strip():
        return None, "text is empty"
    if row["image"] in pixels:
        return closed_form(pixels[row["image"]], row["text"]), ""
    return None, "known format" if row["image"] == "broken.png" else "no image file"


def require_rows(given: list[dict[str, str]], got: list[dict[str, str]], pixels: Pixels) -> None:
    assert len(got) == len(given)
    for row, out in zip(given, got, strict=True):
        assert {name: out[name] for name in row} == row
        assert list(out) == [*row, "score", "probability", "error"]
        score, error = expected(row, pixels)
        assert error in (out["error"] or "")
        assert bool(out["error"]) == (score is None)
        if score is None:
            assert out["score"] in (None, "")
            assert out["probability"] in (None, "")
        else:
            assert float(out["score"]) == pytest.approx(score, abs=1e-6)
            assert float(out["probability"]) == pytest.approx(probability(score), abs=1e-6)


def read(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".json":
        return list(json.loads(path.read_text("utf-8")))
    return list(parquet.read_table(path).to_pylist())


@pytest.mark.parametrize("there", ["csv", "jsonl", "parquet", "json"])
@pytest.mark.parametrize("given", ["csv", "jsonl", "parquet"])
def test_a_row_out_for_each_row_in_from_every_form_to_every_form(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels, given: str, there: str
) -> None:
    rows = rows_of(60)
    path = tmp_path / f"in.{given}"
    if given == "csv":
        path.write_text(as_csv(rows), "utf-8")
    elif given == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    ended = run("--pairs", path.name, "-o", f"out.{there}")
    assert ended.code == 3, ended.err
    require_rows(rows, read(tmp_path / f"out.{there}"), pixels)
    failed = sum(expected(row, pixels)[0] is None for row in rows)
    assert f"rows that could not be scored: {failed} of 60" in ended.err
    assert not list(tmp_path.glob("*journal*"))


def test_equal_rows_are_scored_once_and_stay(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels
) -> None:
    rows = [{"image": f"{n % 2}.png", "text": TEXTS[n % 3]} for n in range(60)]
    (tmp_path / "in.csv").write_text(as_csv(rows))
    ended = run("--pairs", "in.csv", "-o", "out.csv")
    assert ended.code == 0, ended.err
    require_rows(rows, read(tmp_path / "out.csv"), pixels)
    assert "scored 6 pairs" in ended.err


def test_malformed_rows_keep_their_place(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels
) -> None:
    (tmp_path / "in.csv").write_text(
        'id,image,text\n1,0.png,dog\n2,0.png,red, dog\n3,0.png\n4,0.png,"a"b\n5,1.png,dog\n'
    )
    assert run("--pairs", "in.csv", "-o", "out.csv").code == 3
    out = read(tmp_path / "out.csv")
    assert [row["id"] for row in out] == ["1", "2", "3", "4", "5"]
    assert [bool(row["score"]) for row in out] == [True, False, False, False, True]
    assert "3 columns" in out[1]["error"]
    assert "not valid CSV" in out[3]["error"]
    (tmp_path / "in.jsonl").write_text(
        '{"image": "0.png", "text": "dog", "id": 1}\n{"image"\n7\n{"image": 5, "text": "dog"}\n'
        '{"text": "dog", "id": 5}\n{"image": "1.png", "text": "d\\u0000g"}\n'
        '{"image": "1.png", "text": "dog", "odd": "\\ud800"}\n'
    )
    for form in ("jsonl", "csv", "parquet"):
        assert run("--pairs", "in.jsonl", "-o", f"out.{form}").code == 3
        errors = [row["error"] or "" for row in read(tmp_path / f"out.{form}")]
        for error, part in zip(
            errors,
            [
                *("", "not valid JSON", "not a JSON object", "image must be text, got int 5"),
                *("image is empty", "text has a NUL", ""),
            ],
            strict=True,
        ):
            assert part in error
            assert bool(part) == bool(error)


def test_types_stay_in_jsonl_and_parquet(run: Callable[..., Run], tmp_path: Path) -> None:
    objects = [
        {"id": 2**60, "image": "0.png", "text": "dog", "tags": ["a", 1], "w": 1.5},
        {"image": "gone.png", "text": "dog", "w": 2, "on": True, "nested": {"x": [None]}},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(it) + "\n" for it in objects))
    run("--pairs", "in.jsonl", "-o", "out.jsonl")
    for given, out in zip(objects, read(tmp_path / "out.jsonl"), strict=True):
        assert list(out) == [*given, "score", "probability", "error"]
        assert {name: out[name] for name in given} == given
    run("--pairs", "in.jsonl", "-o", "out.parquet")
    kinds = {it.name: it.type for it in parquet.read_schema(tmp_path / "out.parquet")}
    assert (kinds["id"], kinds["w"], kinds["on"]) == (
        pyarrow.int64(), pyarrow.float64(), pyarrow.bool_(),
    )  # fmt: skip
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["tags"] for row in table] == ['["a", 1]', None]  # no type in common
    columns = {
        "image": pyarrow.array(["0.png", "gone.png"]).dictionary_encode(),
        "text": ["dog", "dog"],
        "at": pyarrow.array([1, 2], pyarrow.timestamp("ns")),
        "n": pyarrow.array([1, None], pyarrow.int8()),
        "deep": [{"x": [1.5]}, None],
        "raw": [b"\xff", b""],
        "day": [datetime.date(2026, 11, 29), None],
    }
    given = pyarrow.table(columns).replace_schema_metadata({"mine": "kept"})
    parquet.write_table(given, tmp_path / "in.parquet")
    run("--pairs", "in.parquet", "-o", "back.parquet")
    back = parquet.read_table(tmp_path / "back.parquet")
    assert back.select(given.column_names).equals(given)
    assert back.schema.metadata[b"mine"] == b"kept"
    run("--pairs", "in.parquet", "-o", "out.csv")
    (first, _) = read(tmp_path / "out.csv")
    assert (first["day"], first["raw"], first["deep"]) == ("2026-11-29", "/w==", '{"x": [1.5]}')


def test_columns_of_the_same_name_are_passed_on_under_another(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("image,text,score\n0.png,dog,mine\n")
    for number in range(3):
        given = f"out{number - 1}.csv" if number else "in.csv"
        ended = run("--pairs", given, "-o", f"out{number}.csv")
        assert ended.code == 0, ended.err
        assert "the column 'score' of " in ended.err
        assert "is passed on as 'input_score" in ended.err
    (row,) = read(tmp_path / "out2.csv")
    assert list(row) == [
        "image", "text", "input_score",
        *("input_score_2", "input_probability", "input_error"),
        *("input_score_3", "input_probability_2", "input_error_2"),
        *("score", "probability", "error"),
    ]  # fmt: skip
    assert row["input_score"] == "mine"
    assert row["score"] == row["input_score_2"] == row["input_score_3"]


def test_other_columns_and_other_places_of_images(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels, dsd_trt: Callable[..., Run]
) -> None:
    (tmp_path / "sub").mkdir()
    rows = [("2.png", "dog"), ("gone.png", "dog"), ("0.png", TEXTS[0])]
    table = "file,caption\n" + "".join(f'{image},"{text}"\n' for image, text in rows)
    (tmp_path / "sub/in.csv").write_text(table)
    columns = ("--image-column", "file", "--text-column", "caption")
    ended = run("--pairs", "sub/in.csv", *columns, "-o", "a.csv")
    assert ended.code == 3
    assert "none of the images of sub/in.csv is there, such as '2.png'" in ended.err
    assert run("--pairs", "sub/in.csv", *columns, "--images", ".", "-o", "b.csv").code == 3
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in pixels:
            tar.add(tmp_path / name, name)
    (tmp_path / "t.csv").write_text(table.replace("2.png", "2").replace("0.png", "0"))
    assert run("--pairs", "sub/in.csv", *columns, "--images", "x.tar", "-o", "c.csv").code == 3
    assert run("--pairs", "t.csv", *columns, "--images", "x.tar", "-o", "d.csv").code == 3
    header, *lines = table.splitlines(keepends=True)
    (tmp_path / "u.csv").write_text(header + "".join(f"x.tar/{line}" for line in lines))
    assert run("--pairs", "u.csv", *columns, "-o", "e.csv").code == 3
    assert dsd_trt("index", *pixels, "ix").code == 0
    ended = run("--pairs", "sub/in.csv", *columns, "--images", "ix", "-o", "f.csv")
    assert ended.code == 3
    wanted = [closed_form(pixels["2.png"], "dog"), None, closed_form(pixels["0.png"], TEXTS[0])]
    for name in "bcdef":
        scores = [row["score"] for row in read(tmp_path / f"{name}.csv")]
        assert [float(it) if it else None for it in scores] == pytest.approx(wanted, abs=1e-5), name
    errors = {name: read(tmp_path / f"{name}.csv")[1]["error"] for name in "bcf"}
    assert "no image file 'gone.png'" in errors["b"]
    assert "x.tar has no image 'gone.png'" in errors["c"]
    assert "ix has no image 'gone.png'; its names are such as '0.png'" in errors["f"]


def test_wrong_use_is_said_before_anything_runs(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("image,text\n0.png,dog\n")
    (tmp_path / "empty.csv").write_text("image,text\n")
    (tmp_path / "other.csv").write_text("url,caption\na,b\n")
    (tmp_path / "texts.txt").write_text("dog\n")
    (tmp_path / "nothing").mkdir()
    for arguments, complaint in (
        (["--pairs", "empty.csv"], "empty.csv has no rows"),
        (["--pairs", "other.csv"], "no column 'image' among 'url', 'caption'"),
        (["--pairs", "in.csv", "--images", "texts.txt"], "no folder, index or tar file"),
        (["--pairs", "in.csv", "--text-field", "x"], "--text-column names its texts"),
        (["0.png", "texts.txt", "--image-column", "x"], "for --pairs"),
        (["--pairs", "nothing"], "nothing has no tar files"),
        (["--pairs", "in.csv", "-o", "in.csv"], "is read as an input"),
        (["--pairs", "in.csv", "-o", "0.png"], "is read as an input"),
    ):
        ended = run(*arguments)
        assert (ended.code, ended.out) == (2, ""), (arguments, ended.err)
        assert complaint in ended.err, arguments
        assert "engine:" not in ended.err, arguments


def test_windows_change_no_score(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an image's texts are in several windows, and rows are shuffled."""
    monkeypatch.setattr("dsd_trt.pairs.run._PAIRS", 7)
    rows = rows_of(120, seed=4)
    (tmp_path / "in.csv").write_text(as_csv(rows))
    assert run("--pairs", "in.csv", "-o", "out.csv").code == 3
    require_rows(rows, read(tmp_path / "out.csv"), pixels)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_stopped_run_goes_on_in_any_window(
    run: Callable[..., Run], tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dsd_trt.journal as journal

    monkeypatch.setattr("dsd_trt.pairs.run._PAIRS", 5)
    rows = rows_of(150, seed=5)
    (tmp_path / "in.csv").write_text(as_csv(rows))
    arguments = ("--pairs", "in.csv", "-f", form)
    whole = run(*arguments, "-o", "whole")
    assert whole.code == 3
    write, left = journal.Journal._write, [0]

    def stopping(self: journal.Journal, content: dict[str, object]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, content)

    monkeypatch.setattr(journal.Journal, "_write", stopping)
    stops = 0
    while True:
        left[0] = 2
        ended = run(*arguments, "-o", "out", "--resume")
        if ended.code == 3:
            break
        assert ended.code == 130, ended.err
        stops += 1
    assert stops > 3
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def by_pandas(path: Path) -> Any:
    """A table as pandas reads it: what is empty in CSV is empty text."""
    if path.suffix == ".csv":
        return pandas.read_csv(path, dtype=str, keep_default_na=False)
    if path.suffix == ".jsonl":
        return pandas.read_json(path, lines=True, dtype=False)
    return pandas.read_parquet(path)


@pytest.mark.parametrize("there", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("given", ["csv", "jsonl", "parquet"])
def test_the_output_is_joined_by_its_row(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels, given: str, there: str
) -> None:
    """Row numbers are the same for pandas; failures are counted from the images and texts alone."""
    rows = rows_of(300, seed=9)
    path = tmp_path / f"in.{given}"
    if given == "csv":
        path.write_text(as_csv(rows), "utf-8")
    elif given == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=37)
    assert run("--pairs", path.name, "-o", f"out.{there}").code == 3
    left, right = by_pandas(path), by_pandas(tmp_path / f"out.{there}")
    assert left["id"].tolist() == [row["id"] for row in rows]
    pandas.testing.assert_frame_equal(right[left.columns], left, check_dtype=False)
    joined = pandas.concat([left, right[["score", "error"]]], axis=1)
    assert len(joined) == len(rows)
    scores = pandas.to_numeric(joined["score"])
    no_text = joined["text"].str.strip() == ""
    broken, gone = joined["image"] == "broken.png", joined["image"] == "gone.png"
    assert joined.duplicated(["image", "text"]).any()
    assert scores.isna().equals(no_text | broken | gone)
    for reason, which in (
        ("text is empty", no_text),
        ("not an image of a known format", broken & ~no_text),
        ("no image file 'gone.png'", gone & ~no_text),
    ):
        assert which.any()
        said = joined["error"].fillna("").str.contains(reason, regex=False)
        assert said.equals(which)
    equal = joined[scores.notna()].groupby(["image", "text"])["score"].nunique()
    assert (equal == 1).all()
    for (image, text), group in joined[scores.notna()].groupby(["image", "text"]):
        expected = closed_form(pixels[image], text)
        assert scores[group.index].to_numpy() == pytest.approx(expected, abs=1e-6)


_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from dsd_trt.pairs.survey import PairSurvey
from dsd_trt.pairs.table import TablePairs
from dsd_trt.tables.columns import ColumnNames
from dsd_trt.tables.table import Table

survey = PairSurvey.of(TablePairs(Table.open(sys.argv[1]), ColumnNames()))
assert sum(1 for _ in survey.distinct()) == survey.count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_texts(tmp_path: Path) -> None:
    peaks = []
    for rows in (100, 60_000):
        with (tmp_path / "in.csv").open("w") as file:
            file.write("image,text,note\n")
            file.writelines(f"{n}.png,{n} {'dog ' * 40},{'x' * 200}\n" for n in range(rows))
        ended = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(tmp_path / "in.csv")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(ended.stdout))
    assert peaks[1] - peaks[0] < 20_000, peaks  # kB, of a file of 24 MB


def test_the_best_rows_of_each_text_are_kept_with_all_their_columns(
    run: Callable[..., Run], pixels: Pixels, tmp_path: Path
) -> None:
    given = rows_of(60, seed=3)
    (tmp_path / "found.csv").write_text(as_csv(given), encoding="utf-8")
    ended = run("--pairs", "found.csv", "--top-k", "2", "--by", "text", "-f", "csv")
    assert ended.code == 3
    got = list(csv.DictReader(io.StringIO(ended.out)))
    by_text: dict[str, list[tuple[float, dict[str, str]]]] = {}
    for row in given:
        score, _ = expected(row, pixels)
        if score is not None:
            by_text.setdefault(row["text"].strip(), []).append((score, row))
    best = [
        row for scored in by_text.values() for _, row in sorted(scored, key=lambda it: -it[0])[:2]
    ]
    assert [row["id"] for row in got] == [row["id"] for row in best]
    assert [{name: row[name] for name in given[0]} for row in got] == best


def test_images_of_an_index_are_found_by_the_tables_folder_too(
    run: Callable[..., Run], dsd_trt: Callable[..., Run], pixels: Pixels, tmp_path: Path
) -> None:
    """An index of `data/0.png` and a table in `data` with `0.png`."""
    (tmp_path / "data").mkdir()
    for name in pixels:
        (tmp_path / name).rename(tmp_path / "data" / name)
    rows = [{"image": name, "text": "dog"} for name in (*pixels, "gone.png", "data/1.png")]
    (tmp_path / "data/found.csv").write_text(as_csv(rows), encoding="utf-8")
    assert dsd_trt("index", *(f"data/{name}" for name in pixels), "own.index").code == 0

    ended = run("--pairs", "data/found.csv", "--images", "own.index", "-f", "csv")

    assert ended.code == 3
    *scored, gone, named = csv.DictReader(io.StringIO(ended.out))
    for row, image in zip(scored, pixels.values(), strict=True):
        assert float(row["score"]) == pytest.approx(closed_form(image, "dog"), abs=1e-6)
    assert named["score"] == scored[1]["score"]
    assert "own.index has no image 'gone.png'; its names are such as 'data/0.png'" in gone["error"]


def piped(
    monkeypatch: pytest.MonkeyPatch, dsd_trt: Callable[..., Run], content: bytes, *arguments: str
) -> Run:
    """A command with a table on its standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return dsd_trt(*arguments)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_table_on_standard_input_is_read_as_its_file(
    dsd_trt: Callable[..., Run],
    tmp_path: Path,
    pixels: Pixels,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first bytes say which form it is; images are relative to the current folder."""
    rows, path = rows_of(60, seed=2), tmp_path / f"in.{form}"
    if form == "csv":
        path.write_text(as_csv(rows), "utf-8")
    elif form == "jsonl":
        path.write_text("\n \n" + "".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    ended = piped(
        monkeypatch, dsd_trt, path.read_bytes(), "score", "--pairs", "-", "-o", f"out.{form}"
    )
    assert ended.code == 3, ended.err
    require_rows(rows, read(tmp_path / f"out.{form}"), pixels)
    assert dsd_trt("score", "--pairs", path.name, "-o", f"again.{form}").code == 3
    outputs = [(tmp_path / f"{it}.{form}").read_bytes() for it in ("out", "again")]
    assert outputs[0] == outputs[1]
    for arguments in (("-",), (path.name,)):
        ended = piped(
            monkeypatch, dsd_trt, path.read_bytes(),
            *("filter", *arguments, "--keep-best", "5", "-o", f"kept{len(arguments[0])}"),
        )  # fmt: skip
        assert ended.code == 3, ended.err
    assert (tmp_path / "kept1").read_bytes() == (tmp_path / f"kept{len(path.name)}").read_bytes()
    assert not list(tmp_path.glob("*journal*"))


def test_a_stopped_run_of_standard_input_goes_on(
    dsd_trt: Callable[..., Run], tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dsd_trt.journal as journal

    content = as_csv([{"image": f"{n % 5}.png", "text": f"dog {n}"} for n in range(40)]).encode()
    arguments = ("score", "--pairs", "-", "-o", "out.csv")
    write, left = journal.Journal._write, [2]

    def stopping(self: journal.Journal, line: dict[str, object]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, line)

    monkeypatch.setattr("dsd_trt.pairs.run._PAIRS", 5)
    monkeypatch.setattr(journal.Journal, "_write", stopping)
    assert piped(monkeypatch, dsd_trt, content, *arguments).code == 130
    left[0] = 1000
    other = piped(monkeypatch, dsd_trt, content + b"0.png,dog\n", *arguments, "--resume")
    assert other.code == 2
    assert "is of another run" in other.err
    ended = piped(monkeypatch, dsd_trt, content, *arguments, "--resume")
    assert ended.code == 0, ended.err
    assert "were scored before" in ended.err
    assert len(read(tmp_path / "out.csv")) == 40


def test_what_is_wrong_with_standard_input_is_told(
    dsd_trt: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content, complaint in (
        (b"", "standard input is empty; write a header, such as image,text"),
        (b"image,text\n", "standard input has no rows"),
        (b"a,b\n1,2\n", "standard input, line 1: no column 'image' among 'a', 'b'"),
        (b'[{"image": "a"}]', "standard input is a JSON list; write its objects on a line each: "),
        ("image,text\n".encode("utf-16"), "it is UTF-16: save it as UTF-8"),
        (b"\x1f\x8b\x08\0\0", "it is compressed: gunzip unpacks it"),
        (b"PAR1 and no more", "standard input is no whole Parquet file"),
    ):
        ended = piped(monkeypatch, dsd_trt, content, "score", "--pairs", "-")
        assert (ended.code, ended.out) == (2, ""), content
        assert complaint in ended.err
    monkeypatch.setattr(sys, "stdin", None)
    ended = dsd_trt("score", "--pairs", "-")
    assert ended.code == 2
    assert "there is no standard input" in ended.err


def test_standard_input_that_fits_no_disk_is_told(
    dsd_trt: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"image,text\n" + b"0.png,dog\n" * 20_000
    with files_of_at_most(4096):
        ended = piped(monkeypatch, dsd_trt, content, "score", "--pairs", "-")
    assert ended.code == 1
    assert "no room for standard input in" in ended.err
    assert "TMPDIR" in ended.err


def test_each_sample_has_its_row_whatever_it_lacks(
    run: Callable[..., Run], tmp_path: Path, pixels: Pixels
) -> None:
    """Links are followed within the tar; keys may come again; odd names are escaped."""
    good, other = ((tmp_path / name).read_bytes() for name in ("0.png", "1.png"))
    link, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    members: list[tuple[bytes, bytes | tuple[str, bytes]]] = [
        (b"a.png", good), (b"a.txt", b"a red circle"),
        (b"b.png", ("a.png", link)), (b"b.txt", b"dog"),
        (b"c.png", ("a.png", hard)), (b"c.txt", b"dog"),
        (b"d.png", ("../../etc/passwd", link)), (b"d.txt", b"dog"),
        (b"e.png", good),
        (b"f.txt", b"dog"),
        (b"g.png", b"broken"), (b"g.txt", b"dog"),
        (b"h.png", good), (b"h.txt", "\xe9".encode("latin-1")),
        (b"i.png", good), (b"i.txt", b" \n"),
        (b"._j.png", b"of macOS"),
        (b"x/a.png", other), (b"x/a.txt", b"dog"),
        (b"a.png", other), (b"a.txt", b"a red circle"),
        (b"\xff.png", good), (b"\xff.txt", b"dog"),
    ]  # fmt: skip
    with tarfile.open(tmp_path / "w.tar", "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.linkname, member.type = content
                tar.addfile(member)
    ended = run("--pairs", "w.tar", "-f", "jsonl")
    assert ended.code == 3, ended.err
    rows = [json.loads(line) for line in ended.out.splitlines()]
    expected: list[tuple[str, str, str]] = [  # name, image, and a part of the error
        ("w.tar/a", "0.png", ""), ("w.tar/b", "0.png", ""), ("w.tar/c", "0.png", ""),
        ("w.tar/d", "", "a link that leads to no file of the tar"),
        ("w.tar/e", "", "has no txt: it has png"),
        ("w.tar/f", "", "has no image: it has txt"),
        ("w.tar/g", "", "not an image of a known format"),
        ("w.tar/h", "", "its txt is not UTF-8 text"),
        ("w.tar/i", "", "its txt is empty"),
        ("w.tar/x/a", "1.png", ""), ("w.tar/a", "1.png", ""), ("w.tar/\\udcff", "0.png", ""),
    ]  # fmt: skip
    assert [row["image"] for row in rows] == [name for name, _, _ in expected]
    for row, (_, image, error) in zip(rows, expected, strict=True):
        if image:
            score = closed_form(pixels[image], row["text"])
            assert row["score"] == pytest.approx(score, abs=1e-6)
        else:
            assert error in row["error"]
            assert row["score"] is None
