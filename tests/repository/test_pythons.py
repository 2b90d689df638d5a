"""The lean runtime on the other Pythons that the package names, where they are installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dsd_trt import Scorer

ROOT = Path(__file__).parents[2]
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
NAMED = [it.rpartition(" ")[2] for it in CLASSIFIERS if it.startswith("Programming Language")]
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
OTHERS = [version for version in NAMED if version[:1].isdigit() and version != HERE]

# Modules that import nothing but the standard library: all that bundles, plans and files are
# described by. Compiling reads every module of the package, with warnings as errors.
BARE = """
import importlib, pathlib, sys, warnings
warnings.simplefilter("error")
root = pathlib.Path(sys.argv[1])
folders = ("dsd_trt", "train", "export", "engines")
files = [path for folder in folders for path in (root / folder).rglob("*.py")]
for path in files:
    compile(path.read_text("utf-8"), str(path), "exec")
sys.path.insert(0, str(root))
for name in (
    "bundle.contract", "bundle.manifest", "engine", "engine.tensorrt.plan", "errors", "files.rows",
    "files.schema", "mode",
):
    importlib.import_module(f"dsd_trt.{name}")
from dsd_trt.bundle.manifest import Manifest
text = (root / "dsd_trt/data/shapes-bundle/bundle.json").read_text("utf-8")
manifest = Manifest.from_json(text)
assert Manifest.from_json(manifest.to_json()) == manifest
print(len(files))
"""

SCORE = """
import importlib, json, pathlib, sys
import dsd_trt
from dsd_trt import Scorer
from dsd_trt.engine.pooled_attention import kernel_file
folder = pathlib.Path(dsd_trt.__file__).parent
for path in sorted([*folder.glob("*.py"), *(folder / "commands").glob("*.py")]):
    if path.stem != "__main__":
        importlib.import_module(".".join(path.relative_to(folder.parent).with_suffix("").parts))
images, texts = json.loads(sys.argv[1])
scores = {it: Scorer.load(engine=it).score(images, texts).scores for it in sys.argv[2:]}
print(json.dumps([kernel_file() is not None, {it: each.tolist() for it, each in scores.items()}]))
"""


def interpreters(version: str) -> Iterator[Path]:
    """Interpreters of a version, on the PATH or among pyenv's; a pyenv shim may be of none."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    on_path = shutil.which(f"python{version}")
    found = [*sorted((root / "versions").glob(f"{version}.*/bin/python"))]
    for path in [Path(on_path), *found] if on_path else found:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        run = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if run.returncode == 0 and run.stdout.strip() == version:
            yield path


@pytest.fixture(scope="module", params=OTHERS)
def python(request: pytest.FixtureRequest) -> Path:
    version: str = request.param
    path = next(interpreters(version), None)
    if path is None:
        pytest.skip(f"no Python {version} here")
    return path


def test_other_versions_are_named() -> None:
    assert {HERE, *OTHERS} >= {"3.11", "3.12", "3.13"}


def test_modules_that_need_nothing_are_imported(python: Path) -> None:
    run = subprocess.run(
        [python, "-I", "-c", BARE, ROOT], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 100


@pytest.mark.slow
def test_it_installs_and_scores_the_same(python: Path, tmp_path: Path) -> None:
    """In an environment of its own, from the package index, which has to be within reach."""
    left_behind = shutil.ignore_patterns(
        ".git", ".venv*", "runs", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache"
    )
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=left_behind)
    there = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    pip: list[str | Path] = [there, "-m", "pip", "install", "--quiet"]
    pip += ["--constraint", ROOT / "constraints.txt"]
    wanted = f"{source}[cpu,openvino,index]"
    installed = subprocess.run([*pip, wanted], capture_output=True, text=True, check=False)
    if installed.returncode:
        reachable = subprocess.run([*pip, "--no-deps", "click"], capture_output=True, check=False)
        if reachable.returncode:
            pytest.skip("pip reaches no package index")
        pytest.fail(installed.stderr)

    images = [str(path) for path in sorted((ROOT / "examples" / "images").glob("*.png"))[:3]]
    texts = ["a large yellow star", "a red circle to the left of a blue square"]
    engines = ("onnxruntime", "openvino")
    run = subprocess.run(
        [there, "-c", SCORE, json.dumps([images, texts]), *engines],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    kernel, scores = json.loads(run.stdout.splitlines()[-1])
    assert kernel or shutil.which("g++") is None
    for engine in engines:
        here = Scorer.load(engine=engine).score(images, texts).scores
        np.testing.assert_allclose(np.array(scores[engine]), here, atol=1e-5)
    texts_file = ROOT / "examples" / "texts.txt"
    command: list[str | Path] = [there.with_name("dsd-trt"), "score", images[0], texts_file]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
