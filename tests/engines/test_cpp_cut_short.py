"""Libraries of CUDA that are cut short: loading one ends a process with a bus error.

ONNX Runtime is the stand-in of `test_cpp_cuda`. It loads the provider that lies beside it, as the
real one does, and the provider loads CUDA.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cuda_package import PROVIDER
from stub_libraries import compile_library, cut_short, needs_compiler
from test_cpp_cuda import EMBEDDED, NEEDED, assert_refused, assert_scores_are_pythons
from test_cpp_cuda import files as files
from test_cpp_cuda import stand_in as stand_in

pytest_plugins = ("cpp",)
pytestmark = needs_compiler

PROVIDER_OF = """
#include <dlfcn.h>
__attribute__((constructor)) static void load(void) { dlopen("%s", RTLD_NOW); }
"""


@pytest.fixture
def runtime(stand_in: Path, tmp_path: Path) -> Path:
    """A folder with ONNX Runtime and its provider."""
    folder = tmp_path / "runtime"
    for name in PROVIDER:
        compile_library(folder, name)
    (folder / "libonnxruntime.so.1").symlink_to(stand_in / "libonnxruntime.so.1")
    return folder


def score(
    build: Path, files: list[str], *folders: Path, device: str = "cuda"
) -> subprocess.CompletedProcess[str]:
    """Score where libraries are searched in `folders` first."""
    return subprocess.run(
        [build / "dsd-score", "--device", device, EMBEDDED, *files],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, folders)),
            "STAND_IN_REAL": str(NEEDED / "lib" / "libonnxruntime.so"),
        },
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", PROVIDER)
def test_the_provider(name: str, runtime: Path, cpp_build: Path, files: list[str]) -> None:
    library = runtime / name
    cut_short(library)
    done = score(cpp_build, files, runtime)
    start = f"device cuda:0 cannot be used: {library} is cut short: it has 131072 bytes, and "
    assert_refused(done, start, "or more are loaded. Copy the libraries of ONNX Runtime 9.9.9")
    assert_scores_are_pythons(
        score(cpp_build, files, runtime, device="cpu"), EMBEDDED, files
    )  # which does not load it


@pytest.mark.parametrize(
    "name", ["libcuda.so.1", "libcudart.so.99", "libcublasLt.so.99", "libcudnn_ops.so.9"]
)
def test_what_the_provider_loads(
    name: str, runtime: Path, cpp_build: Path, files: list[str], tmp_path: Path
) -> None:
    compile_library(runtime, PROVIDER[1], PROVIDER_OF % name)
    library = tmp_path / "cuda" / name
    cut_short(library)
    done = score(cpp_build, files, runtime, library.parent)
    start = f"device cuda:0 cannot be used: {library} is cut short: it has 131072 bytes, and "
    assert_refused(done, start, "or more are loaded. Install it again")


def test_a_whole_library_before_one_that_is_cut_short(
    runtime: Path, cpp_build: Path, files: list[str], tmp_path: Path
) -> None:
    """Only the one that the loader takes counts; and others than CUDA's are nobody's business."""
    name = "libcublas.so.99"
    compile_library(runtime, PROVIDER[1], PROVIDER_OF % name)
    compile_library(tmp_path / "first", name)
    for it in (name, "libcurl.so.99"):
        cut_short(tmp_path / "second" / it)
    done = score(cpp_build, files, runtime, tmp_path / "first", tmp_path / "second")
    assert_scores_are_pythons(done, EMBEDDED, files)
