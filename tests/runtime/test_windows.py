"""Commands without what Windows lacks: functions and modules of Unix are taken away here.

That is not Windows, whose files and signals differ in more than this.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsd_trt import Bundle
from dsd_trt.files.position import read_at, write_at

WITHOUT = """
import os, signal, sys

for name in {functions}:
    delattr(os, name)
del signal.SIGHUP
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
from dsd_trt.__main__ import run

run()
"""
UNIX = [
    *("O_NONBLOCK", "fchmod", "fork", "getloadavg", "getuid", "killpg", "mkfifo", "pread"),
    *("pwrite", "register_at_fork", "sched_getaffinity", "wait4"),
]


def test_scores_are_written_and_resumed(bundle: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(
            tmp_path / f"images/{name}.png"
        )
    (tmp_path / "texts.txt").write_text("a dog\nblue\n")
    (tmp_path / "pairs.csv").write_text("image,text\nimages/a.png,a dog\nimages/b.png,blue\n")
    code = WITHOUT.format(functions=UNIX)

    def dsd_trt(*arguments: object) -> None:
        ended = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments), "--bundle", str(bundle.folder)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr

    grid = ("images", "texts.txt", "--engine", "onnxruntime")
    dsd_trt("score", *grid, "-o", "scores.csv")
    first = (tmp_path / "scores.csv").read_bytes()
    dsd_trt("score", *grid, "-o", "scores.csv", "--resume")
    assert (tmp_path / "scores.csv").read_bytes() == first
    assert len(list(csv.DictReader(io.StringIO(first.decode())))) == 4
    dsd_trt("score", "--pairs", "pairs.csv", "-o", "scored.jsonl", "--engine", "onnxruntime")
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()
    ]
    assert [row["error"] for row in rows] == [None, None]
    dsd_trt("index", "images", "own.index", "--engine", "onnxruntime")
    dsd_trt("filter", "pairs.csv", "--keep-best", "1", "-o", "kept.csv", "--engine", "onnxruntime")
    assert len((tmp_path / "kept.csv").read_text().splitlines()) == 2


def test_positions_are_those_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "pwrite")
    with (tmp_path / "file").open("w+b") as file:
        assert write_at(file.fileno(), b"abcdef", 0) == 6
        assert write_at(file.fileno(), b"XY", 2) == 2
        assert read_at(file.fileno(), 3, 1) == b"bXY"
    assert (tmp_path / "file").read_bytes() == b"abXYef"
