"""docs/rerank.md, followed to the letter in a copy of the examples: commands, code, figures."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/rerank.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(sh|python|text)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
QUERIES = 14


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all commands of the page have run."""
    folder = tmp_path_factory.mktemp("rerank")
    shutil.copytree(ROOT / "examples", folder / "examples")
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    lines = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        ended = subprocess.run(
            shlex.split(line),
            cwd=folder,
            env={**os.environ, "PATH": scripts},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, (line, ended.stderr)
    return folder


def test_the_code_runs_and_prints_what_it_says(folder: Path) -> None:
    code = "\n".join(block for kind, block in BLOCKS if kind == "python")
    first, *printed = [block for kind, block in BLOCKS if kind == "text"]
    table = (ROOT / "examples/candidates.csv").read_text("utf-8")
    assert set(first.splitlines()) <= set(table.splitlines())
    assert len(printed) == 3
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for text in printed:
        assert text in run.stdout


def test_the_commands_write_the_best_of_each_query(folder: Path) -> None:
    given, kept = (_read(folder / name) for name in ("examples/candidates.csv", "reranked.csv"))
    queries = list(dict.fromkeys(row["query"] for row in given))
    assert [query for query, _ in groupby(kept, lambda row: row["query"])] == queries
    scored = {(it["query"], it["image"]): float(it["score"]) for it in _read(folder / "scored.csv")}
    for query in queries:
        own = [row for row in kept if row["query"] == query]
        assert len(own) == 3
        best = sorted((f for (q, _), f in scored.items() if q == query), reverse=True)[:3]
        assert [float(row["score"]) for row in own] == pytest.approx(best, abs=1e-5)
        for row in own:
            assert {**row, "score": row["input_score"]}.items() >= next(
                it for it in given if (it["query"], it["image"]) == (query, row["image"])
            ).items()
    best_of_all = _read(folder / "best.csv")
    assert len(best_of_all) == 3 * (QUERIES + 2)  # of 16 texts
    found = [row["query"] for row in kept if row["relevant"] == "1"]
    assert len(found) == len(set(found)) >= 10
