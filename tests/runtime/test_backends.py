"""An engine is one file and one line of a table: a test adds one, and everything works with it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import RESOLUTION, closed_form, make_bundle
from numpy.typing import NDArray
from PIL import Image

from dsd_trt import Bundle, InputError
from dsd_trt.bundle.method import Mode
from dsd_trt.engine import BACKENDS, ON_GPU, engine_names, find_backend

ROOT = Path(__file__).parents[2]
TEXTS = ["a red circle", "dog", "a green square"]
LINES = """
from dsd_trt.engine import BACKENDS
BACKENDS["numpy"] = "numpy_backend:BOTH"
BACKENDS["numpy-pair"] = "numpy_backend:PAIR"
"""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "matrix", matrix=True)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `dsd-trt` where the table has two more lines, in processes that it starts as well."""
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(LINES)
    places = (str(tmp_path / "start"), str(ROOT / "tests" / "support"), str(ROOT))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dsd_trt", *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def pixels(tmp_path: Path) -> list[NDArray[np.uint8]]:
    """Two images, which lie in the folder `images`; the texts beside it in `texts.txt`."""
    drawn = np.random.default_rng(3).integers(0, 256, (2, RESOLUTION, RESOLUTION, 3), np.uint8)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(drawn):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    return list(drawn)


@pytest.mark.parametrize(
    ("engine", "mode"), [("numpy", "pair"), ("numpy", "matrix"), ("numpy-pair", "pair")]
)
def test_it_scores_and_indexes(
    command: Command, matrix: Bundle, pixels: list[NDArray[np.uint8]], engine: str, mode: Mode
) -> None:
    with_it = ("--bundle", matrix.folder, "--engine", engine)
    expected = [closed_form(image, text, mode=mode) for image in pixels for text in TEXTS]
    done = command("index", "images", "images.index", *with_it)
    assert done.returncode == 0, done.stderr
    for images in ("images", "images.index"):
        done = command("score", images, "texts.txt", *with_it, "--mode", mode, "-f", "jsonl")
        assert done.returncode == 0, done.stderr
        assert "numpy on CPU, fp32" in done.stderr
        scores = [json.loads(line)["score"] for line in done.stdout.splitlines()]
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_mode_it_lacks_is_refused_with_those_that_have_it(
    command: Command, matrix: Bundle, pixels: list[NDArray[np.uint8]]
) -> None:
    with_it = ("--bundle", matrix.folder, "--engine", "numpy-pair", "--mode", "matrix")
    done = command("score", "images", "texts.txt", *with_it)
    assert done.returncode == 2
    assert "matrix mode does not run on numpy-pair yet" in done.stderr
    able = [it for it in BACKENDS if "matrix" in find_backend(it).modes]
    assert f"--engine {', '.join([*able, 'numpy'])}\n" in done.stderr


@pytest.mark.parametrize("name", ["score", "index", "eval"])
def test_help_and_choices_have_it(command: Command, name: str) -> None:
    choices = "|".join(("auto", *BACKENDS, "numpy", "numpy-pair"))
    assert f"[{choices}]" in "".join(command(name, "--help").stdout.split())
    refused = command(name, "--engine", "abacus", "x", "y")
    assert refused.returncode == 2
    assert "'numpy'" in refused.stderr


@pytest.mark.slow  # the machine is measured too
def test_it_is_measured(command: Command, matrix: Bundle) -> None:
    names = "numpy,numpy-matrix,numpy-pair"
    size = ("--images", "2", "--texts", "2", "--rounds", "1")
    done = command("bench", "--bundle", matrix.folder, "--contenders", names, *size)
    assert done.returncode == 0, done.stderr
    assert "dsd-trt on numpy |" in done.stdout
    assert "dsd-trt on numpy, matrix mode |" in done.stdout
    refused = command("bench", "--contenders", "numpy-pair-matrix")
    assert refused.returncode == 2


def test_what_every_backend_says_of_itself() -> None:
    for name in BACKENDS:
        backend = find_backend(name)
        assert backend.name == name
        assert backend.modes <= {"pair", "matrix"}
        assert backend.keeps_order_of in (None, *BACKENDS)
    assert len({find_backend(name).title for name in BACKENDS}) == len(BACKENDS)
    assert tuple(name for name in BACKENDS if find_backend(name).on_gpu) == ON_GPU
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {find_backend(it).extra for it in BACKENDS} <= extras["optional-dependencies"].keys()


@pytest.mark.parametrize("name", ["abacus", "", "Auto", None, 3])
def test_another_name_is_refused(name: Any) -> None:
    with pytest.raises(InputError, match=f"choose from {', '.join(engine_names())}$"):
        find_backend(name)


# Where a backend's name may stand: its own files, the table, TensorRT's compiler and the
# repositories for Triton, which has backends of the same names, and what examines the packages
# behind each backend.
OWN = ("dsd_trt/engine/", "dsd_trt/doctor/", "engines/")
DISTRIBUTIONS = {"export/describe.py", "export/benchmark/machine.py"}  # whose versions are listed
FILES = [
    path
    for folder in ("dsd_trt", "train", "export")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_of_an_engine_stands_elsewhere(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if name.startswith(OWN) or name in DISTRIBUTIONS:
        return
    texts = {
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not texts & set(engine_names()[1:])
    messages = [text for text in texts if "\n" not in text]  # of many lines is documentation
    assert not [text for text in messages if any(f"--engine {it}" in text for it in BACKENDS)]
