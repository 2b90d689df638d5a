"""Git LFS pointers: what a clone has in place of large files that were not downloaded."""

from __future__ import annotations

from pathlib import Path

from dsd_trt.files.regular import open_regular

_START = b"version https://git-lfs.github.com/spec/"
POINTER = "it is a Git LFS pointer, not the file itself: fetch that with: git lfs pull"


def is_pointer(content: bytes) -> bool:
    """Whether content is a pointer, given its first 40 bytes or more."""
    return content.startswith(_START)


def is_pointer_file(path: Path) -> bool:
    """Whether a file is a pointer; False if it cannot be read."""
    try:
        with open_regular(path) as file:
            return is_pointer(file.read(len(_START)))
    except OSError:
        return False
