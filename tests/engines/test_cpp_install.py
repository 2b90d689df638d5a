"""The C++ library, installed: a tree that runs anywhere, and projects that build with it."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from cpp import ROOT

from dsd_trt import Scorer

pytest_plugins = ("cpp",)

SOURCE = ROOT / "engines" / "cpp"
NEEDED = ROOT / ".venv-cpp" / "needed"
EMBEDDED = ROOT / "dsd_trt" / "data" / "shapes-bundle"
IMAGE = ROOT / "examples" / "images" / "lone-star.png"
TEXTS = ["a large yellow star", "a small red cross"]
GUIDE = (ROOT / "docs" / "cpp.md").read_text("utf-8")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
# Where the tree was built counts for nothing.
ELSEWHERE = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}


def blocks(language: str, heading: str = "") -> list[str]:
    """The guide's blocks of a language, of one section or of all."""
    text = GUIDE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0] if heading else GUIDE
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**ELSEWHERE, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    return done.stdout


@pytest.fixture(scope="module")
def expected() -> list[float]:
    scored = Scorer.load(EMBEDDED, engine="onnxruntime").score([IMAGE], TEXTS)
    return [float(it) for it in scored.probabilities[0]]


@pytest.fixture(scope="module")
def home(cpp_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the tree in it that the guide installs, moved there after it was installed."""
    first = tmp_path_factory.mktemp("first")
    run("cmake", "--install", cpp_build, "--prefix", first / "dsd")
    there = tmp_path_factory.mktemp("home")
    shutil.move(first / "dsd", there / "dsd")
    return there


def probabilities(program: Path, folder: Path) -> list[float]:
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    printed = run(program, EMBEDDED, IMAGE, folder / "texts.txt")
    return [float(row["probability"]) for row in csv.DictReader(printed.splitlines())]


def test_versions_are_one() -> None:
    (declared,) = re.findall(
        r"^project\(dsd VERSION (\S+)", (SOURCE / "CMakeLists.txt").read_text(), re.M
    )
    assert declared == VERSION
    assert f"find_package(dsd {VERSION.rpartition('.')[0]} REQUIRED)" in GUIDE


def test_an_installed_program_runs_where_it_was_moved(
    home: Path, expected: list[float], tmp_path: Path
) -> None:
    assert probabilities(home / "dsd" / "bin" / "dsd-score", tmp_path) == pytest.approx(
        expected, abs=1e-5
    )
    linked = run("ldd", home / "dsd" / "bin" / "dsd-score")
    for name in ("libdsd", "libonnxruntime"):
        assert re.search(rf"{name}\S* => {home}/", linked), linked
    assert str(ROOT) not in linked


def test_the_tree_has_its_licences_and_no_trace_of_the_build(home: Path) -> None:
    licences = home / "dsd" / "share" / "doc" / "dsd"
    assert "Apache License" in (licences / "LICENSE").read_text("utf-8")
    assert "Niels Lohmann" in (licences / "nlohmann-json.txt").read_text("utf-8")
    assert "UNICODE LICENSE V3" in (licences / "unicode.txt").read_text("utf-8")
    assert "Microsoft" in (licences / "onnxruntime-LICENSE").read_text("utf-8")
    assert (licences / "onnxruntime-ThirdPartyNotices.txt").stat().st_size > 10_000
    for path in (home / "dsd").rglob("*"):
        if path.is_file() and path.suffix in (".cmake", ".pc", ".hpp", ".h"):
            assert str(ROOT) not in path.read_text("utf-8"), path


@pytest.mark.parametrize("heading", ["Install", "CMake", "pkg-config"])
def test_the_guide_runs_to_the_letter(
    heading: str, home: Path, cpp_build: Path, expected: list[float], tmp_path: Path
) -> None:
    if heading == "pkg-config" and shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    for folder in ("engines", "dsd_trt", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "first.cpp").write_text(blocks("cpp")[0])
    (tmp_path / "CMakeLists.txt").write_text("".join(blocks("cmake", heading)))
    lines = [line for block in blocks("sh", heading) for line in block.splitlines()]
    assert len(lines) >= 2
    used = tmp_path / "home" if heading == "Install" else home
    printed = run("sh", "-ec", "\n".join(lines), cwd=tmp_path, HOME=str(used))
    if heading == "Install":
        assert "dsd-score" in printed
        assert "lone-star.png,a large yellow star," in printed
    else:
        assert printed.split()[-2:] == [f"{p:.3f}" for p in expected]


def test_a_project_in_c_alone(home: Path, expected: list[float], tmp_path: Path) -> None:
    shutil.copy(SOURCE / "example" / "score.c", tmp_path)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(mine LANGUAGES C)\n"
        "find_package(dsd REQUIRED)\nadd_executable(mine score.c)\n"
        "target_link_libraries(mine PRIVATE dsd::dsd)\n"
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={home / 'dsd'}")
    run("cmake", "--build", tmp_path / "b")
    _, probability = run(tmp_path / "b" / "mine", EMBEDDED, IMAGE, TEXTS[0]).split()
    assert float(probability) == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize(("wanted", "fits"), [("0.1", True), ("0.2", False), ("1", False)])
def test_another_minor_version_is_refused(
    wanted: str, fits: bool, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(mine LANGUAGES NONE)\n"
        f'find_package(dsd {wanted} QUIET)\nmessage(STATUS "found ${{dsd_FOUND}}")\n'
    )
    said = run("cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={home / 'dsd'}")
    assert ("found 1" in said) == fits


WITHIN = {
    "add_subdirectory": f'add_subdirectory("{SOURCE}" dsd)\n',
    "FetchContent": (
        "include(FetchContent)\n"
        f'FetchContent_Declare(dsd SOURCE_DIR "{ROOT}" SOURCE_SUBDIR engines/cpp)\n'
        "FetchContent_MakeAvailable(dsd)\n"
    ),
}


def configured_within(kind: str, folder: Path) -> Path:
    """A project with the library in it, before it is built."""
    if not NEEDED.exists():
        pytest.skip("ONNX Runtime's headers are not here: make fetches them, where there is npm")
    (folder / "first.cpp").write_text(blocks("cpp")[0])
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(mine LANGUAGES C CXX)\n"
        + WITHIN[kind]
        + "add_executable(first first.cpp)\ntarget_link_libraries(first PRIVATE dsd::dsd)\n"
        "install(TARGETS first)\n"
    )
    run(
        *(
            "cmake",
            "-S",
            folder,
            "-B",
            folder / "b",
            f"-DONNXRUNTIME_ROOT={NEEDED / 'onnxruntime'}",
        ),
        f"-DCMAKE_PREFIX_PATH={NEEDED / 'nlohmann_json'}",
    )
    return folder / "b"


@pytest.mark.parametrize("kind", WITHIN)
def test_within_another_project_the_library_alone_is_built(
    kind: str, cpp_build: Path, tmp_path: Path
) -> None:
    build = configured_within(kind, tmp_path)
    targets = run("cmake", "--build", build, "--target", "help")
    assert re.search(r"\bdsd\b", targets)
    assert "dsd-score" not in targets
    cache = (build / "CMakeCache.txt").read_text("utf-8")
    assert "CMAKE_BUILD_TYPE:STRING=\n" in cache
    assert "Python3" not in cache
    installing = "".join(it.read_text("utf-8") for it in build.rglob("cmake_install.cmake"))
    assert "first" in installing
    assert "libdsd" not in installing


@pytest.mark.slow
def test_within_another_project_it_scores(
    cpp_build: Path, expected: list[float], tmp_path: Path
) -> None:
    build = configured_within("FetchContent", tmp_path)
    run("cmake", "--build", build, "--parallel", "2")
    printed = run(build / "first", cwd=ROOT)
    assert printed.split() == [f"{p:.3f}" for p in expected]


def test_the_archive_is_the_tree(
    home: Path, cpp_build: Path, expected: list[float], tmp_path: Path
) -> None:
    run("cpack", "-B", tmp_path / "dist", cwd=cpp_build)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    name = archive.name.removesuffix(".tar.gz")
    assert re.fullmatch(rf"dsd-{re.escape(VERSION)}-Linux-\w+", name)
    promised = (tmp_path / "dist" / f"{archive.name}.sha256").read_text().split()[0]
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == promised
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    tree = tmp_path / name
    here, there = (
        {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
        for root in (tree, home / "dsd")
    )
    assert here == there
    assert probabilities(tree / "bin" / "dsd-score", tmp_path) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_the_unicode_tables_are_those_of_tokenizers(tmp_path: Path) -> None:
    written = tmp_path / "tables.inc"
    run(sys.executable, SOURCE / "unicode_tables.py", written)

    def tables(path: Path) -> list[str]:
        return [line for line in path.read_text("utf-8").splitlines() if not line.startswith("//")]

    assert tables(written) == tables(SOURCE / "src" / "unicode_tables.inc")
