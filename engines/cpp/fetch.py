"""Fetch the C++ runtime's build dependencies that no system package has, pinned and verified.

ONNX Runtime's library comes from its Python package. That has no headers, so these come from an
npm package for phones. Usage: fetch.py FOLDER
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib import util
from pathlib import Path, PurePosixPath

HEADERS = "com.github.asus4.onnxruntime@0.4.9"
HEADERS_SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
HEADERS_FOLDER = "ios-arm64/onnxruntime.framework/Headers/"

JSON = "pgm-build-deps==2026.10.26.92"  # the headers of nlohmann-json 3.12, among others
JSON_SHA256 = "fe18d1004aa8630c5dd2c82a33b2f6b561a7c60da1d4f2484cbc39dc5236f772"
JSON_FOLDER = "pgm_build_deps/nlohmann_json/"


def run(command: list[str], folder: Path, sha256: str) -> Path:
    """Run a command that downloads one file to a folder, and verify that file.

    Args:
        command: program and arguments, run in `folder`.
        folder: folder for the file, which must not exist yet.
        sha256: expected hash of the file, in hexadecimal.

    Returns:
        The verified file.
    """
    folder.mkdir()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    (file,) = folder.iterdir()
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            raise SystemExit(f"{file.name} is not the file it was: its sha256 differs")
    return file


def fetch_headers(scratch: Path, target: Path) -> None:
    """Copy ONNX Runtime's headers to `target`; `scratch` holds the download."""
    target.mkdir(parents=True)
    command = ["npm", "pack", "--silent", HEADERS]
    with tarfile.open(run(command, scratch / "npm", HEADERS_SHA256)) as archive:
        for member in archive:
            if HEADERS_FOLDER in member.name and (stream := archive.extractfile(member)):
                (target / PurePosixPath(member.name).name).write_bytes(stream.read())


def fetch_json(scratch: Path, target: Path) -> None:
    """Copy nlohmann-json with its CMake files to `target`; `scratch` holds the download."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", JSON]
    with zipfile.ZipFile(run(pip, scratch / "pip", JSON_SHA256)) as archive:
        for name in archive.namelist():
            if name.startswith(JSON_FOLDER) and not name.endswith("/"):
                file = target / name.removeprefix(JSON_FOLDER)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))


def link_library(target: Path) -> None:
    """Link the shared library of the installed onnxruntime into `target`."""
    spec = util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise SystemExit("onnxruntime is not installed here: pip install onnxruntime")
    (library,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*")
    target.mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (target / name).symlink_to(library)


def main(folder: Path) -> None:
    """Fill a folder with `onnxruntime`, in the layout of its releases, and `nlohmann_json`."""
    with tempfile.TemporaryDirectory() as scratch:
        fetch_headers(Path(scratch), folder / "onnxruntime" / "include")
        fetch_json(Path(scratch), folder / "nlohmann_json")
    link_library(folder / "onnxruntime" / "lib")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
