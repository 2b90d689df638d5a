"""The kernel of matrix mode for Arm, cross-compiled and run by an emulator of its processor."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dsd_trt.engine.pooled_attention import PooledAttention

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "dsd_trt/engine/pooled_attention.cpp"
PROGRAM = Path(__file__).with_name("pool_attention.cpp")
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
LIBRARIES = Path("/usr/aarch64-linux-gnu")  # where Debian has those of Arm

needs_emulator = pytest.mark.skipif(
    shutil.which(COMPILER) is None or EMULATOR is None or not LIBRARIES.is_dir(),
    reason="needs a compiler for Arm and qemu: apt-get install g++-aarch64-linux-gnu qemu-user",
)


def compile_kernel(library: Path, *flags: str) -> None:
    """Compile the kernel as installing it on Arm does."""
    (extension,) = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"][
        "setuptools"
    ]["ext-modules"]
    flags = (*extension["extra-compile-args"], *extension["extra-link-args"], *flags)
    command = [COMPILER, *flags, "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([*command, SOURCE, "-o", library], check=True)


class ArmKernel:
    """A kernel that was compiled for Arm.

    Args:
        library: the compiled kernel.
        folder: an empty folder, for the program that loads it.
        flags: further flags to compile the program with.
    """

    def __init__(self, library: Path, folder: Path, *flags: str) -> None:
        program = folder / "pool_attention"
        command = [COMPILER, "-std=c++17", "-O1", "-pthread", *flags]
        subprocess.run([*command, PROGRAM, "-o", program, "-ldl"], check=True)
        self._command = [str(EMULATOR), "-L", *map(str, (LIBRARIES, program, library))]

    def pool(self, layers: Sequence[PooledAttention], threads: int) -> None:
        """As `pool_attention`, which has checked that sizes fit."""
        given = [np.array([len(layers), threads], np.int64).tobytes()]
        for layer in layers:
            heads, texts, counted, images = layer.pooled.shape
            tokens, image_tokens = layer.keys.shape[1] // texts, layer.queries.shape[2] // images
            sizes = heads, texts, tokens, counted, layer.keys.shape[2], images, image_tokens
            each = 0 if layer.moments is None else layer.moments.basis.shape[1]
            given += [np.array((*sizes, each), np.int64).tobytes(), np.float32(layer.lam).tobytes()]
            given += [layer.keys.tobytes(), layer.queries.tobytes()]
            if layer.moments is not None:
                given.append(layer.moments.basis.tobytes())
        done = subprocess.run(self._command, input=b"".join(given), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert np.frombuffer(done.stdout, np.int64, 2).tolist() == [128, 0]  # NEON, and no tiles
        values = np.frombuffer(done.stdout, np.float32, offset=16)
        results = []
        for layer in layers:
            results += (
                [layer.pooled] if layer.moments is None else [layer.pooled, layer.moments.sums]
            )
        ends = np.cumsum([it.size for it in results])
        assert len(values) == ends[-1]
        for result, part in zip(results, np.split(values, ends[:-1]), strict=True):
            result[:] = part.reshape(result.shape)
