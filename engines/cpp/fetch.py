"""Fetch what the C++ runtime is built with and no system package has, pinned and verified.

ONNX Runtime's library comes from its Python package, which has no headers: those come from an npm
package that carries them for phones. Usage: fetch.py FOLDER
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
    """Run what downloads one file to a folder; returns the file, verified."""
    folder.mkdir()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    (file,) = folder.iterdir()
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            raise SystemExit(f"{file.name} is not the file it was: its sha256 differs")
    return file


def fetch_headers(scratch: Path, target: Path) -> None:
    """Put ONNX Runtime's headers into a folder."""
    target.mkdir(parents=True)
    command = ["npm", "pack", "--silent", HEADERS]
    with tarfile.open(run(command, scratch / "npm", HEADERS_SHA256)) as archive:
        for member in archive:
            if HEADERS_FOLDER in member.name and (stream := archive.extractfile(member)):
                (target / PurePosixPath(member.name).name).write_bytes(stream.read())


def fetch_json(scratch: Path, target: Path) -> None:
    """Put nlohmann-json into a folder, with its CMake files."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", JSON]
    with zipfile.ZipFile(run(pip, scratch / "pip", JSON_SHA256)) as archive:
        for name in archive.namelist():
            if name.startswith(JSON_FOLDER) and not name.endswith("/"):
                file = target / name.removeprefix(JSON_FOLDER)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))


def link_library(target: Path) -> None:
    """Let a folder hold the shared library of the onnxruntime that is installed."""
    spec = util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise SystemExit("onnxruntime is not installed here: pip install onnxruntime")
    (library,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*")
    target.mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (target / name).symlink_to(library)


def main(folder: Path) -> None:
    """Fill a folder: `onnxruntime` laid out as its releases are, and `nlohmann_json`."""
    with tempfile.TemporaryDirectory() as scratch:
        fetch_headers(Path(scratch), folder / "onnxruntime" / "include")
        fetch_json(Path(scratch), folder / "nlohmann_json")
    link_library(folder / "onnxruntime" / "lib")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
