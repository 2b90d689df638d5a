"""Names of tar files; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
"""Suffixes of tar files, including unsupported ones, which are reported instead of ignored."""


def is_tar(path: Path) -> bool:
    """Whether a file is a tar file, by its name."""
    return path.name.lower().endswith(SUFFIXES)
