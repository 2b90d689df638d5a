"""The output formats of scores: one table, which help, documents and writing agree with."""

from __future__ import annotations

import os
import re
import threading
from itertools import chain
from pathlib import Path

import pytest

from dsd_trt.commands.formats import FORMATS, AtEnd, Streamed, formats_help
from dsd_trt.commands.layout import MATRIX
from dsd_trt.commands.output import LineFile, Record

PAGE = Path(__file__).parents[2] / "docs" / "score.md"
RECORDS = [
    Record("a.png", 'a "red", dog', 0.25, 0.5),
    Record("b,\t|.png", "two\nlines", 0.125, 0.75),
    Record("ü\u2028.png", "日本", 1.0, 0.0),
]
STREAMED = {name: it for name, it in FORMATS.items() if isinstance(it, Streamed)}


def test_the_guide_lists_every_format_and_when_it_is_written() -> None:
    section = PAGE.read_text("utf-8").partition("\n## Output\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", section, re.MULTILINE)
    written = {name: text for cell, text in rows for name in re.findall(r"`(\w+)`", cell)}
    assert written.keys() == FORMATS.keys()
    for name, text in written.items():
        assert text.startswith("as scores arrive" if name in STREAMED else "at the end"), name
        needs = getattr(FORMATS[name], "needs", "")
        assert needs.replace("-o FILE", "`-o FILE`").replace("index", "`index`") in text


def test_the_help_names_those_that_grow_and_what_others_need() -> None:
    text = formats_help()
    grow = re.findall(r"\w+", text.partition(" grow ")[0])
    for name, it in FORMATS.items():
        assert (name in grow) == isinstance(it, Streamed)
        if isinstance(it, AtEnd) and it.needs:
            assert f"{name} needs {it.needs}." in text


@pytest.mark.parametrize("name", STREAMED)
def test_lines_do_not_depend_on_when_scores_arrive(name: str) -> None:
    lines = list(STREAMED[name].lines(RECORDS, MATRIX))
    assert lines == list(chain.from_iterable(STREAMED[name].lines([it], MATRIX) for it in RECORDS))
    assert len(lines) == len(RECORDS)
    assert all(it.endswith("\n") for it in lines)


@pytest.mark.parametrize("name", STREAMED)
def test_a_pipe_gets_one_header(name: str, tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes().decode()))
    reader.start()
    form = STREAMED[name]
    file = LineFile(str(pipe), form.header(MATRIX), goes_on=False)
    for record in RECORDS:
        file.add(form.lines([record], MATRIX))
    file.finish()
    file.close()
    reader.join()
    assert got == [form.header(MATRIX) + "".join(form.lines(RECORDS, MATRIX))]
