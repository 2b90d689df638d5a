"""What the wheel and the sdist hold: all that a user needs, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from arm_kernel import COMPILER, ArmKernel, needs_emulator

from dsd_trt.engine.pooled_attention import PooledAttention

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "dsd_trt": "dsd_trt",
    "train": "dsd_trt/train",
    "export": "dsd_trt/export",
    "engines": "dsd_trt/engines",
}
LEAN = {"click", "numpy", "pillow", "rich", "tokenizers"}
EXTRAS = {"cpu", "index", "openvino", "gpu", "rtx", "triton", "train", "export", "test"}
IN_PAGES = ("page.css", "explorer.js")
MIB = 2**20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, so that building leaves nothing in it and finds no earlier build."""
    copy = tmp_path_factory.mktemp("source") / "dsd-trt"
    left_behind = shutil.ignore_patterns(
        ".git", ".venv*", "runs", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, copy, ignore=left_behind, symlinks=True)
    return copy


def build(source: Path, out: Path, kind: str = "wheel", **env: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
        env={**os.environ, **env},
    )
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build(source, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_string(wheel.read(name).decode())


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("sdist"), "sdist")


def _installed(wheel: zipfile.ZipFile) -> set[PurePosixPath]:
    """Files the wheel installs, less its own records."""
    paths = {PurePosixPath(name) for name in wheel.namelist()}
    return {path for path in paths if not path.parts[0].endswith(".dist-info")}


def test_everything_is_under_one_name(wheel: zipfile.ZipFile) -> None:
    assert {path.parts[0] for path in _installed(wheel)} == {"dsd_trt"}


def test_modules_are_those_of_the_four_folders(wheel: zipfile.ZipFile, source: Path) -> None:
    expected = {
        PurePosixPath(target, *path.relative_to(source / folder).parts)
        for folder, target in FOLDERS.items()
        for path in (source / folder).rglob("*.py")
        if "cpp" not in path.parts  # what builds the C++ runtime
    }
    # A folder missing here is missing from `packages` in pyproject.toml.
    assert {path for path in _installed(wheel) if path.suffix == ".py"} == expected


def test_other_files_are_the_marker_the_embedded_data_and_parts_of_pages(
    wheel: zipfile.ZipFile, source: Path
) -> None:
    data = {
        PurePosixPath(*path.relative_to(source).parts)
        for path in (source / "dsd_trt" / "data").rglob("*")
        if path.is_file()
    }
    others = {path for path in _installed(wheel) if path.suffix not in (".py", ".so")}
    pages = {PurePosixPath("dsd_trt/html", it) for it in IN_PAGES}
    assert others == data | pages | {PurePosixPath("dsd_trt/py.typed")}
    assert PurePosixPath("dsd_trt/data/shapes-bundle/bundle.json") in data
    assert PurePosixPath("dsd_trt/data/shapes-bundle/MODEL_CARD.md") in data
    assert PurePosixPath("dsd_trt/data/shapes-model/model_index.json") in data


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_what_is_compiled_is_the_kernel(wheel: zipfile.ZipFile) -> None:
    (path,) = (path for path in _installed(wheel) if path.suffix == ".so")
    assert path.parent == PurePosixPath("dsd_trt/engine")
    assert path.name == f"_pooled_attention{EXTENSION_SUFFIXES[0]}"


def unbuilt(source: Path, folder: Path) -> Path:
    """A copy of the source without what building left in it."""
    ignore = shutil.ignore_patterns("build")
    return shutil.copytree(source, folder / "source", ignore=ignore, symlinks=True)


@pytest.mark.slow
@needs_emulator
def test_a_wheel_for_arm_has_a_kernel_that_computes(source: Path, tmp_path: Path) -> None:
    variables = {
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",  # by which Python itself is cross-compiled
        **dict.fromkeys(("CC", "CXX"), COMPILER),
        **dict.fromkeys(("LDSHARED", "LDCXXSHARED"), f"{COMPILER} -shared"),
    }
    path = build(unbuilt(source, tmp_path), tmp_path / "wheel", **variables)
    assert path.name.endswith("-linux_aarch64.whl")
    with zipfile.ZipFile(path) as wheel:
        (kernel,) = (it for it in wheel.namelist() if it.endswith(".so"))
        extracted = Path(wheel.extract(kernel, tmp_path))
    keys = np.zeros((1, 77, 8), np.float32)  # attention is the same everywhere
    queries = np.ones((1, 8, 9), np.float32)
    layer = PooledAttention(keys, queries, np.empty((1, 1, 3, 1), np.float32), 20.0)
    ArmKernel(extracted, tmp_path).pool([layer], 2)
    np.testing.assert_allclose(layer.pooled, np.exp(20 / 77), rtol=1e-5)


def test_without_a_compiler_it_is_left_out(source: Path, tmp_path: Path) -> None:
    copy = unbuilt(source, tmp_path)
    wheel = zipfile.ZipFile(build(copy, tmp_path / "wheel", CC="false", CXX="false"))
    assert not [path for path in _installed(wheel) if path.suffix == ".so"]
    assert PurePosixPath("dsd_trt/engine/pooled_attention.py") in _installed(wheel)


@pytest.mark.parametrize("embedded", ["shapes-bundle", "shapes-model"])
def test_embedded_data_is_small(wheel: zipfile.ZipFile, embedded: str) -> None:
    prefix = f"dsd_trt/data/{embedded}/"
    sizes = [item.file_size for item in wheel.infolist() if item.filename.startswith(prefix)]
    assert 0 < sum(sizes) <= 12 * MIB


def test_bare_requirements_are_lean(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist", [])
    bare = [line for line in requirements if "extra ==" not in line]
    assert {line.split(">")[0].strip() for line in bare} == LEAN
    assert set(metadata.get_all("Provides-Extra", [])) >= EXTRAS


def test_carries_its_licence_and_its_command(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    records = {name.partition("/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert b"Apache License" in wheel.read(records["licenses/LICENSE"])
    assert b"dsd-trt = dsd_trt.__main__:run" in wheel.read(records["entry_points.txt"])


def test_scores_with_the_embedded_bundle(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere, with the tree out of reach."""
    wheel.extractall(tmp_path)
    code = (
        "import dsd_trt, numpy\n"
        "print(dsd_trt.__file__)\n"
        "image = numpy.full((64, 64, 3), 128, numpy.uint8)\n"
        "print(dsd_trt.Scorer.load(engine='onnxruntime').score([image], ['a star']).scores)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(tmp_path)


def test_the_sdist_holds_what_building_needs(sdist: Path, source: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = [it for it in archive.getmembers() if not it.isdir()]
    assert all(it.isreg() for it in members)  # links are resolved
    packed = {PurePosixPath(*PurePosixPath(it.name).parts[1:]) for it in members}
    made = {it for it in packed if it.parts[0] in ("PKG-INFO", "setup.cfg", "dsd_trt.egg-info")}
    modules = {
        path.relative_to(source)
        for folder in FOLDERS
        for path in (source / folder).rglob("*.py")
        if "cpp" not in path.parts
    }
    data = {path for path in (source / "dsd_trt" / "data").rglob("*") if path.is_file()}
    others = {source / it for it in ("LICENSE", "README.md", "pyproject.toml")}
    others |= {source / "dsd_trt" / "py.typed"}
    others |= {source / "dsd_trt" / "html" / it for it in IN_PAGES}
    others |= {source / "dsd_trt" / "engine" / "pooled_attention.cpp"}
    expected = modules | {path.relative_to(source) for path in data | others}
    assert packed - made == {PurePosixPath(it) for it in expected}


@pytest.mark.slow
def test_a_wheel_of_the_sdist_is_the_trees(
    sdist: Path, wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    again = zipfile.ZipFile(build(tree, tmp_path / "wheel"))
    assert _installed(again) == _installed(wheel)
