"""NVIDIA's CUDA runtime and its headers, if this machine has them, and the GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_VERSION = re.compile(r"^#define CUDART_VERSION +(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class CudaRuntime:
    """Headers and library of one major version of CUDA."""

    include: Path
    library: Path


def find_cuda_runtime() -> CudaRuntime | None:
    """That of CUDA_HOME, of the wheels from 13 on, or of PyTorch's; None if there is none.

    The wheel nvidia-cuda-runtime lacks some of its headers, which are in nvidia-cuda-crt; beside
    PyTorch, Triton's package has all of them.
    """
    headers = {
        version.group(1)[:-3]: folder
        for folder in reversed(list(_folders("include")))
        if (folder / "crt" / "host_defines.h").exists()
        and (header := folder / "cuda_runtime_api.h").exists()
        and (version := _VERSION.search(header.read_text("utf-8")))
    }
    for folder in _folders("lib", "lib64"):
        for library in sorted(folder.glob("libcudart.so.*")):
            major = library.name.split(".")[2]
            if major in headers:
                return CudaRuntime(headers[major], library)
    return None


def _folders(*names: str) -> Iterator[Path]:
    packages = Path(sysconfig.get_paths()["purelib"])
    for root in (
        *([Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []),
        *sorted(packages.glob("nvidia/cu[0-9]*")),
        packages / "nvidia" / "cuda_runtime",
        packages / "triton" / "backends" / "nvidia",
    ):
        yield from (root / name for name in names)


def compute_capability() -> str | None:
    """Compute capability of the first GPU, such as "9.0"; None if there is no GPU."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True)
    except OSError:
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None
