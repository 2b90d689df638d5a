"""The command's process: it starts with less than the libraries would load, and ends at once."""

from __future__ import annotations

import csv
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dsd_trt import Bundle

SCORE = [
    *(sys.executable, "-m", "dsd_trt", "score", "*.png", "texts.txt"),
    *("--bundle", "bundle", "--engine", "openvino"),
]
TEXTS = [f"a {color} {shape}" for color in ("red", "green", "blue") for shape in ("circle", "star")]


@pytest.fixture
def folder(tmp_path: Path, bundle: Bundle) -> Path:
    """Images, texts, and the stand-in model: which one scores is not the point."""
    for place in range(3):
        Image.new("RGB", (64, 64), (80 * place, 40, 90)).save(tmp_path / f"{place}.png")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", "utf-8")
    (tmp_path / "bundle").symlink_to(bundle.folder)
    return tmp_path


def score(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*SCORE, *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_everything_is_written_before_it_ends(folder: Path) -> None:
    piped = score(folder, "-f", "csv")
    assert piped.returncode == 0, piped.stderr
    rows = list(csv.DictReader(io.StringIO(piped.stdout)))
    assert [(row["image"], row["text"]) for row in rows] == [
        (f"{place}.png", text) for place in range(3) for text in TEXTS
    ]
    assert "scored 18 pairs" in piped.stderr
    assert score(folder, "-f", "csv", "-o", "scores.csv").returncode == 0
    assert (folder / "scores.csv").read_text("utf-8") == piped.stdout


def test_what_failed_is_in_its_exit_code(folder: Path) -> None:
    (folder / "3.png").write_bytes((folder / "0.png").read_bytes()[:40])
    done = score(folder, "-f", "jsonl")
    assert done.returncode == 3
    assert "3.png" in done.stderr
    assert len(done.stdout.splitlines()) >= 18
    assert score(folder, "--levels", "7").returncode == 2


def test_a_reader_that_leaves_is_no_traceback(folder: Path) -> None:
    """As `head` does once it has seen enough."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [*SCORE, "-f", "csv"]
    with os.fdopen(writing, "wb") as stdout:
        done = subprocess.run(
            command, cwd=folder, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_it_ends_without_unloading_openvino_alone(folder: Path, engine: str) -> None:
    """With it, what is registered for Python's end is not run, and its converter is not there."""
    program = (
        "import atexit, sys\n"
        "from dsd_trt.__main__ import run\n"
        "atexit.register(lambda: print('ended'))\n"
        "sys.argv[1:] = ['score', '0.png', 'texts.txt', '--bundle', 'bundle', '-f', 'csv']\n"
        f"sys.argv[1:] += ['--engine', '{engine}']\n"
        "run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("ended\n") == (engine == "onnxruntime")
    assert ("openvino._pyopenvino" in done.stderr) == (engine == "openvino")
    assert "openvino.tools.ovc.convert" not in done.stderr


def test_a_closed_output_is_no_failure(folder: Path) -> None:
    command = shlex.join([*SCORE, "-o", "out.csv", "-f", "csv"]).replace("*.png", "0.png")
    done = subprocess.run(["sh", "-c", f"{command} >&-"], cwd=folder, check=False)
    assert done.returncode == 0
    assert len((folder / "out.csv").read_text("utf-8").splitlines()) == 7


def test_programs_that_use_the_package_keep_openvino_whole(folder: Path) -> None:
    """Only the command's own process does without OpenVINO's converter."""
    program = (
        "from dsd_trt import Scorer\n"
        "Scorer.load('bundle', engine='openvino')\n"
        "import openvino\n"
        "openvino.convert_model\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
