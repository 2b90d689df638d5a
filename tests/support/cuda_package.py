"""A folder of packages with an `onnxruntime` that says of itself what `onnxruntime-gpu` does."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from stub_libraries import compile_library

PROVIDER = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")

PACKAGE = """
__version__ = {version!r}
def get_available_providers():
    return {providers!r}
def preload_dlls():
    print("Failed to load libcublas.so.13: no such file")
"""


def write_package(
    site: Path,
    editions: Sequence[str] = ("onnxruntime-gpu",),
    providers: Sequence[str] = ("CUDAExecutionProvider", "CPUExecutionProvider"),
    cuda: str | None = "99.0",
    version: str = "1.31.1",
) -> None:
    """Write the package, its provider's libraries, and the metadata of every edition of it.

    Without a compiler the libraries are empty, and cannot be loaded.

    Args:
        site: folder of packages, such as site-packages.
        editions: names of the distributions that are installed.
        providers: providers that the package lists.
        cuda: CUDA version it was built with; None is a build without.
        version: version of the package.
    """
    capi = site / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    source = PACKAGE.format(version=version, providers=list(providers))
    (site / "onnxruntime" / "__init__.py").write_text(source)
    (capi / "__init__.py").write_text("")
    (capi / "build_and_package_info.py").write_text(f"cuda_version = {cuda!r}\n" if cuda else "")
    for name in PROVIDER if providers[0].startswith("CUDA") else ():
        if shutil.which("gcc"):
            compile_library(capi, name)
        else:
            (capi / name).touch()
    for name in editions:
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (folder / "RECORD").write_text("onnxruntime/__init__.py,,\n")
