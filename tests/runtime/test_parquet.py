"""Scores as Parquet, against pyarrow's own reader and the other formats of the same run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from full_disk import files_of_at_most
from in_process import Run
from scored_folder import fill

from dsd_trt.commands.output import Record
from dsd_trt.commands.parquet import ROWS, write_parquet
from dsd_trt.errors import DsdError
from dsd_trt.installation import install_command

pytest_plugins = ("in_process",)

TEXTS = ["a red circle", "dog", 'a "blue" square, a green dog']
INPUTS = ("a.png", "broken.png", "b.png", "texts.txt")


@pytest.fixture
def run(dsd_trt: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """`dsd-trt score` in a folder with two images and one that is none."""
    fill(tmp_path, TEXTS)
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"image": "b.png", "text": text}) + "\n" for text in TEXTS)
    )
    return lambda *arguments: dsd_trt("score", *arguments)


@pytest.mark.parametrize(
    "what", [INPUTS, (*INPUTS, "--top-k", "2"), ("--pairs", "pairs.jsonl")], ids=len
)
def test_it_holds_what_the_other_formats_hold(
    run: Callable[..., Run], tmp_path: Path, what: tuple[str, ...]
) -> None:
    lines = run(*what, "-f", "jsonl")
    ended = run(*what, "-f", "parquet", "-o", "scores.parquet")
    assert (ended.code, ended.out) == (lines.code, "")
    table = parquet.read_table(tmp_path / "scores.parquet")
    assert table.schema == pyarrow.schema(
        [
            ("image", pyarrow.string()),
            ("text", pyarrow.string()),
            ("score", pyarrow.float32()),
            ("probability", pyarrow.float32()),
            *([("error", pyarrow.string())] if "--pairs" in what else []),
        ]
    )
    facts = json.loads(table.schema.metadata[b"dsd-trt"])
    assert {"bundle", "bundle sha256", "mode", "engine", "noise levels", "versions"} == {*facts}
    assert "onnxruntime" in facts["engine"]
    assert f"pillow {version('pillow')}" in facts["versions"]
    expected = [json.loads(line) for line in lines.out.splitlines()]
    assert expected
    for record in expected:  # Python reads doubles
        record |= {it: float(np.float32(record[it])) for it in ("score", "probability")}
    assert table.to_pylist() == expected
    assert {it.name for it in tmp_path.iterdir()} == {*INPUTS, "pairs.jsonl", "scores.parquet"}


def records(count: int) -> Iterator[Record]:
    for place in range(count):
        yield Record(f"image {place // 7}", f"text {place % 7}", place / count, 0.5)


@pytest.mark.parametrize("count", [0, 1, ROWS, 2 * ROWS + 1])
def test_row_groups_are_bounded_and_the_bytes_the_same(tmp_path: Path, count: int) -> None:
    for name in "ab":
        write_parquet(str(tmp_path / name), records(count))
    opened = parquet.ParquetFile(tmp_path / "a")
    groups = [opened.metadata.row_group(it).num_rows for it in range(opened.num_row_groups)]
    assert sum(groups) == count
    assert all(it == ROWS for it in groups[:-1])
    assert groups[-1:] <= [ROWS]
    columns = opened.read().to_pydict()
    assert columns["image"] == [it.image for it in records(count)]
    assert columns["text"] == [it.text for it in records(count)]
    assert columns["score"] == [float(np.float32(it.score)) for it in records(count)]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_row_groups_of_long_texts_are_small(tmp_path: Path) -> None:
    text = "dog " * 25_000
    write_parquet(str(tmp_path / "a"), (Record("a.png", text, 0.5, 0.5) for _ in range(200)))
    opened = parquet.ParquetFile(tmp_path / "a")
    assert opened.num_row_groups == 2
    assert opened.read()["text"].to_pylist() == [text] * 200


@pytest.mark.parametrize("size", [0, 2, 100, 100_000])
def test_a_full_disk_leaves_the_older_file(tmp_path: Path, size: int) -> None:
    write_parquet(str(tmp_path / "scores"), records(3))
    before = (tmp_path / "scores").read_bytes()
    with (
        files_of_at_most(size),
        pytest.raises(DsdError, match=r"cannot write '.*/scores': File too large"),
    ):
        write_parquet(str(tmp_path / "scores"), records(5 * ROWS))
    assert [it.name for it in tmp_path.iterdir()] == ["scores"]
    assert (tmp_path / "scores").read_bytes() == before


def test_what_is_raised_by_scoring_is_what_is_raised(tmp_path: Path) -> None:
    def stopped() -> Iterator[Record]:
        yield from records(ROWS + 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_parquet(str(tmp_path / "scores"), stopped())
    assert not list(tmp_path.iterdir())


def test_it_is_refused_before_scoring_where_it_cannot_be_written(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run(*INPUTS, "-f", "parquet")
    assert (ended.code, ended.out) == (2, "")
    assert "-o FILE.parquet" in ended.err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ended = run(*INPUTS, "-f", "parquet", "-o", "scores.parquet")
    assert ended.code == 4
    assert install_command("index") in ended.err
    assert "engine:" not in ended.err
