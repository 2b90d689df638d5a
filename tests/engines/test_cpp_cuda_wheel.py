"""The C++ scorer with the real onnxruntime-gpu, which `make test-cuda` installs.

Built with the CPU's library, of another version, it takes the GPU package's at run time.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from cpp import clip_bundle
from cuda_runtime import compute_capability
from stub_libraries import compile_driver
from test_cpp_cuda import EMBEDDED, assert_refused, assert_scores_are_pythons, files
from test_cpp_image import clip_tokenizer

pytest_plugins = ("cpp",)

__all__ = ["files"]  # a fixture

without_a_gpu = pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """A folder with the libraries of onnxruntime-gpu, laid out as in its release."""
    spec = importlib.util.find_spec("onnxruntime")
    capi = Path(str(spec.origin)).parent / "capi" if spec else Path("none")
    if not (capi / "libonnxruntime_providers_cuda.so").exists():
        pytest.skip("needs onnxruntime-gpu")
    folder = tmp_path / "libraries"
    folder.mkdir()
    for library in capi.glob("libonnxruntime*"):
        (folder / library.name).symlink_to(library)
        if library.name.startswith("libonnxruntime.so"):
            (folder / "libonnxruntime.so.1").symlink_to(library)
    return folder


def score(
    build: Path, folders: list[Path], *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run the example; libraries are searched in `folders` first."""
    inherited = os.environ.get("LD_LIBRARY_PATH")
    path = [*map(str, folders), *([inherited] if inherited else [])]
    return subprocess.run(
        [build / "dsd-score", *arguments],
        env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )


def test_it_computes_on_the_cpu_too(libraries: Path, cpp_build: Path, files: list[str]) -> None:
    done = score(cpp_build, [libraries], "--device", "cpu", EMBEDDED, *files)
    assert_scores_are_pythons(done, EMBEDDED, files)


@without_a_gpu
def test_without_cuda_or_a_driver_it_is_refused(
    libraries: Path, cpp_build: Path, tmp_path: Path
) -> None:
    arguments = ("--device", "cuda", tmp_path / "no bundle", "image", "texts")
    done = score(cpp_build, [libraries], *arguments)
    assert_refused(done, "device cuda:0 cannot be used: lib", ": cannot open shared object file")
    compile_driver(tmp_path, gpus=0)
    assert_refused(score(cpp_build, [libraries, tmp_path], *arguments), "cannot be used: ")
    (libraries / "libonnxruntime_providers_shared.so").unlink()
    done = score(cpp_build, [libraries], *arguments)
    assert_refused(
        done, "libonnxruntime_providers_cuda.so of ONNX Runtime 1.", " have to lie beside"
    )


@pytest.mark.parametrize("part", ["shared", "cuda"])
def test_a_provider_that_is_cut_short_is_told(
    part: str, libraries: Path, cpp_build: Path, tmp_path: Path
) -> None:
    """Half of the real one, which to load ends the process with a bus error."""
    library = libraries / f"libonnxruntime_providers_{part}.so"
    whole = library.resolve()
    library.unlink()
    with whole.open("rb") as file:
        library.write_bytes(file.read(min(2**20, whole.stat().st_size // 2)))
    arguments = ("--device", "cuda", tmp_path / "no bundle", "image", "texts")
    assert_refused(
        score(cpp_build, [libraries], *arguments),
        f"device cuda:0 cannot be used: {library} is cut short: it has ",
        "or more are loaded. Copy the libraries of ONNX Runtime 1.",
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_scores_on_a_gpu_are_those_of_the_cpu(
    precision: Any,
    libraries: Path,
    cpp_build: Path,
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = clip_bundle(tmp_path / "made", clip_tokenizer(), monkeypatch, precision=precision)
    parts = list(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/lib"))
    for folder in (made.folder, *([EMBEDDED] if precision == "fp32" else [])):
        done = score(cpp_build, [libraries, *parts], "--device", "cuda", folder, *files)
        assert_scores_are_pythons(done, folder, files, within=2e-3)
