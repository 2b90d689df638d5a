"""What commands say of a table: how many rows, questions and images were used, left out, and why.

Forty rows have every fault at once: duplicates, missing and broken images, label 0 alone, labels
that are none, empty texts, captions that say the same.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import make_bundle
from checkpoints import write_checkpoint
from click.testing import CliRunner, Result
from PIL import Image
from test_baselines import write_clip

from dsd_trt.commands.main import cli

COLOURS = ("red", "green", "blue", "white", "black")
Row = tuple[str, str, object]


def _rows() -> list[Row]:
    rows: list[Row] = []
    for number, colour in enumerate(COLOURS):
        for at, (shape, other) in enumerate((("circle", "square"), ("square", "circle"))):
            name = f"{2 * number + at}.png"
            rows += [(name, f"a {colour} {shape}", 1), (name, f"a {colour} {other}", 0)]
    rows += [rows[0], rows[0], rows[1]]  # repeated
    rows += [("gone.png", "a dog", 1), ("gone.png", "a cat", 0)]
    rows += [("broken.png", "a dog", 1), ("broken.png", "a cat", 0), ("empty.png", "a cow", 1)]
    rows += [("zero.png", "a dog", 0), ("zero.png", "a cat", 0)]
    rows += [("0.png", "a star", "maybe"), ("0.png", "a ring", "never"), ("1.png", "", 1)]
    rows += [("2.png", "A green circle.", 1), ("3.png", "the green square", 0)]
    rows += [("4.png", "a cross", ""), ("5.png", "a blue square", 0), ("9.png", "a star", 0)]
    rows += [("6.png", "a dog", 1), ("7.png", "a dog", 1)]
    return rows


def _write(path: Path, rows: Sequence[Row], columns: int = 3) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "text", "label")[:columns])
        writer.writerows(row[:columns] for row in rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("counts")
    rng = np.random.default_rng(0)
    for name in (*map(str, range(10)), "zero"):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(place / f"{name}.png")
    (place / "broken.png").write_text("no image")
    (place / "empty.png").touch()
    rows = _rows()
    assert len(rows) == 40
    _write(place / "forty.csv", rows)
    _write(place / "captions.csv", rows, columns=2)
    _write(place / "one.csv", [("0.png", f"a {it} circle", int(it == "red")) for it in COLOURS])
    _write(place / "zeros.csv", [(image, text, 0) for image, text, _ in rows])
    write_checkpoint(place / "model")
    write_clip(place / "clip")
    make_bundle(place / "bundle")
    return place


COMMANDS = {
    "train": "train --model model --from none --steps 2 --batch 2 --copies 0 --allow-worse",
    "eval": "eval bundle --engine onnxruntime",
    "baseline": "baseline clip --method zero-shot",
    "calibrate": "calibrate bundle --dry-run --engine onnxruntime",
}
# The same in all: what was read of the table, and the rows that failed.
LABELLED = (
    "forty.csv: 40 rows, 16 questions about 11 images; 1 question with other rows' texts as "
    "negatives; 3 rows repeat another",
    "forty.csv: left out: 1 row without a label, 4 rows with label 0 whose image has no row with "
    "label 1, 6 rows that cannot be used",
)
ROWS = (
    "  forty.csv, line 25: no image file 'gone.png'",
    "  forty.csv, line 32: label must be 0 or 1, no or yes, false or true, got 'maybe'",
    "  forty.csv, line 34: text is empty",
)
CONTRADICTION = "  forty.csv, line 12: 'a blue square' has the labels 0 and 1 with '5.png'"
BROKEN = (
    "2 questions left out, for 2 images that failed:",
    "  broken.png: not an image of a known format",
    "  empty.png: the file is empty",
)
CAPTIONS = (
    "captions.csv: 40 rows, 37 questions about 13 images; 37 questions with other rows' texts as "
    "negatives; 4 rows repeat another",
    "captions.csv: left out: 3 rows that cannot be used",
)


def _run(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: str, *more: object
) -> Result:
    monkeypatch.chdir(place)
    arguments: list[Any] = [*COMMANDS[name].split(), "--data", data, *more]
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "train",
            "forty.csv",
            (
                *LABELLED,
                "learning from 13 questions about 9 images; validating on 3 questions about 2 "
                "images, no image in both",
                "learned from 11 questions, validated on 3 questions: the images of others cannot "
                "be read",
                "6 rows left out:",
                *ROWS,
                CONTRADICTION,
                *BROKEN,
            ),
        ),
        (
            "eval",
            "forty.csv",
            (
                *LABELLED,
                "asked 16 questions about 11 images: 14 answered, 2 left out",
                "6 rows left out:",
                *ROWS,
                CONTRADICTION,
                *BROKEN,
                "| 31 pairs of 11 images |  | 95 % interval |",
            ),
        ),
        (
            "baseline",
            "forty.csv",
            (
                *LABELLED,
                "asked 16 questions about 11 images: 14 answered, 2 left out",
                "6 rows left out:",
                *ROWS,
                CONTRADICTION,
                *BROKEN,
            ),
        ),
        (
            "calibrate",
            "forty.csv",
            (
                "31 pairs of 11 images, 15 positive, from 40 rows; left out: 1 row without a "
                "label, 5 rows that cannot be used, 3 pairs without a score",
                *ROWS,
                *BROKEN[1:],
            ),
        ),
        (
            "eval",
            "captions.csv",
            (*CAPTIONS, "asked 37 questions about 13 images: 34 answered, 3 left out"),
        ),
        (
            "eval",
            "one.csv",
            (
                "one.csv: 5 rows, 1 question about 1 image",
                "asked 1 question about 1 image",
                "| 5 pairs of 1 image |  | 95 % interval |",
                "Positive pairs: 1.",
            ),
        ),
        ("calibrate", "one.csv", ("5 pairs of 1 image, 1 positive, from 5 rows",)),
        (
            "train",
            "one.csv",
            (
                "learning from 1 question about 1 image; none held out for validation: they cannot "
                "be divided without an image in both",
            ),
        ),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_a_command_says_what_it_used_and_left_out(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    data: str,
    said: Sequence[str],
) -> None:
    more = ("--out", tmp_path / "out") if name == "train" else ()
    done = _run(place, monkeypatch, name, data, *more)
    assert done.exit_code == (0 if data == "one.csv" else 3), done.output
    lines = done.output.splitlines()
    assert [line for line in said if line not in lines] == []


def test_a_share_and_a_limit_say_what_they_leave_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = _run(place, monkeypatch, "eval", "captions.csv", "--fraction", "0.5", "--limit", "7")
    (line,) = (it for it in done.stderr.splitlines() if it.startswith("captions.csv: left out: "))
    parts = line.partition("left out: ")[2].split(", ")
    assert parts[0] == "3 rows that cannot be used"
    other, beyond = (int(it.split()[0]) for it in parts[1:])
    assert parts[1:] == [
        f"{other} questions in the other part (fraction 0.5)",
        f"{beyond} questions beyond --limit",
    ]
    assert other + beyond + 7 == 37
    assert "asked 7 questions about " in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_table_of_negatives_alone_says_so(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    more = ("--out", tmp_path / "out") if name == "train" else ()
    done = _run(place, monkeypatch, name, "zeros.csv", *more)
    assert done.exit_code == 2
    if name == "calibrate":
        assert "zeros.csv has 37 pairs without a positive one: a fit needs both" in done.output
    else:
        assert "no row of zeros.csv that can be used has the label 1" in done.output


def test_the_counts_are_those_of_what_was_learned(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(place, monkeypatch, "train", "forty.csv", "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["questions"] == [11, 3]
    assert report["left_out"] == 2
