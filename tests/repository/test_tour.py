"""examples/tour.ipynb runs from top to bottom; what it keeps is small and of no machine's own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "examples" / "tour.ipynb"
RUNNER = ROOT / "tools" / "run_notebook.py"
LARGEST = 100_000  # bytes
# The same steps, for less.
SMALLER = {
    "--limit 50 ": "--limit 8 --steps 1 --validation 0 --no-refit --allow-worse ",
    "--limit 100 ": "--limit 8 ",
    "--verify quick ": "--verify quick --no-bf16 ",
}


def cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [it for it in notebook["cells"] if it["cell_type"] == "code"]


def run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUNNER), str(path), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def kept() -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(TOUR.read_text("utf-8"))
    return notebook


def test_it_is_a_notebook_whose_cells_ran_in_order(kept: dict[str, Any]) -> None:
    assert (kept["nbformat"], kept["nbformat_minor"]) == (4, 5)
    assert [it["execution_count"] for it in cells(kept)] == [*range(1, len(cells(kept)) + 1)]
    assert len({it["id"] for it in kept["cells"]}) == len(kept["cells"])
    if importlib.util.find_spec("nbformat"):
        importlib.import_module("nbformat").validate(kept)


def test_its_outputs_are_small_and_have_no_paths_of_a_machine(kept: dict[str, Any]) -> None:
    assert TOUR.stat().st_size < LARGEST
    outputs = json.dumps([it["outputs"] for it in cells(kept)])
    assert sum(bool(it["outputs"]) for it in cells(kept)) >= 5
    without_pictures = re.sub(r"base64,[\w+/=]+", "", outputs)
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|usr|Users)\b", without_pictures)
    assert "Traceback" not in outputs


def test_it_goes_through_every_step(kept: dict[str, Any]) -> None:
    source = "\n".join("".join(it["source"]) for it in cells(kept))
    steps = ("scorer.score(", "dsd-trt train ", "--limit 50 ", "dsd-trt export ", "dsd-trt eval ")
    assert all(step in source for step in steps)


def test_training_helped_in_the_run_that_is_kept(kept: dict[str, Any]) -> None:
    printed = "".join(
        line for it in cells(kept) for output in it["outputs"] for line in output.get("text", [])
    )
    before, after = (
        int(re.search(rf"^{when} training: (\d+) % of 100$", printed, re.MULTILINE)[1])  # type: ignore[index]
        for when in ("before", "after")
    )
    assert after > before + 10  # two standard errors of the difference of 100 questions each


def notebook_of(folder: Path, *sources: str) -> Path:
    """A notebook with some cells of code."""
    path = folder / "some.ipynb"
    plain: dict[str, Any] = {
        "cells": [
            {"cell_type": "code", "source": it, "outputs": [], "execution_count": None}
            for it in sources
        ]
    }
    path.write_text(json.dumps(plain), "utf-8")
    return path


def test_the_runner_keeps_what_a_cell_prints_and_its_last_value(tmp_path: Path) -> None:
    path = notebook_of(tmp_path, "a = 2\nprint('one')", "!echo two; pwd", "a + 1", "a = None\na")
    assert run(path, "--write").returncode == 0
    printed, said, value, nothing = (it["outputs"] for it in cells(json.loads(path.read_text())))
    assert printed[0]["text"] == ["one\n"]
    assert said[0]["text"] == ["two\n", f"{tmp_path}\n"]
    assert value[0]["data"] == {"text/plain": ["3"]}
    assert nothing == []


@pytest.mark.parametrize("source", ["1 / 0", "!exit 3", "a ="])
def test_the_runner_stops_at_an_error(tmp_path: Path, source: str) -> None:
    path = notebook_of(tmp_path, source, "open('reached', 'w')")
    before = path.read_bytes()
    assert run(path, "--write").returncode != 0
    assert path.read_bytes() == before
    assert not (tmp_path / "reached").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("tour"))
    path = tmp_path / "examples" / "tour.ipynb"
    text = path.read_text("utf-8")
    for given, instead in SMALLER.items():
        assert given in text
        text = text.replace(given, instead)
    path.write_text(text, "utf-8")
    done = run(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {it.name for it in (tmp_path / "examples" / "tour").iterdir()} >= {"adapter", "scorer"}
    assert (tmp_path / "examples" / "tour" / "after.json").is_file()
