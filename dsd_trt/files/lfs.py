"""Git LFS: what a clone leaves in a large file's place until it is asked for the file itself."""

from __future__ import annotations

from pathlib import Path

from dsd_trt.files.regular import open_regular

_START = b"version https://git-lfs.github.com/spec/"
POINTER = "it is a Git LFS pointer, not the file itself: fetch that with: git lfs pull"


def is_pointer(content: bytes) -> bool:
    """Whether a file is a pointer, by its first 40 bytes or more."""
    return content.startswith(_START)


def is_pointer_file(path: Path) -> bool:
    """Whether a file is a pointer; not if it cannot be read."""
    try:
        with open_regular(path) as file:
            return is_pointer(file.read(len(_START)))
    except OSError:
        return False
