"""Shared libraries that say what a machine's driver and CUDA would, compiled for a test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

DRIVER = """
int cuInit(unsigned flags) { (void)flags; return %(code)d; }
int cuDriverGetVersion(int *version) { *version = %(version)d; return 0; }
int cuDeviceGetCount(int *count) { *count = %(gpus)d; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? %(capability)d / 10 : %(capability)d %% 10;
    return 0;
}
"""


def compile_library(folder: Path, name: str, source: str = "") -> None:
    """Compile `folder/NAME` with that soname."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{name}", "-o", folder / name],
        input=source,
        text=True,
        check=True,
    )


def cut_short(library: Path) -> None:
    """Leave what a copy that broke off leaves: every header, and not all that they announce.

    Loading it ends a process with a bus error.
    """
    compile_library(library.parent, library.name, "char data[1 << 20] = {1};")
    os.truncate(library, 2**17)


def compile_driver(
    folder: Path, *, code: int = 0, version: int = 13000, gpus: int = 1, capability: int = 90
) -> None:
    """Compile a driver: the result of cuInit, the CUDA version it runs, and its GPUs, of a compute
    capability such as 90."""
    given = {"code": code, "version": version, "gpus": gpus, "capability": capability}
    compile_library(folder, "libcuda.so.1", DRIVER % given)
