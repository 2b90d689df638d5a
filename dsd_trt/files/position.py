"""Reading and writing at a position of an open file, on systems without pread and pwrite too."""

from __future__ import annotations

import os

BINARY: int = getattr(os, "O_BINARY", 0)
"""Flag for `os.open`: Windows otherwise writes a carriage return before each line's end."""


def write_at(file: int, content: bytes, position: int) -> int:
    """Write to a file that nothing else writes to, and return the number of bytes written.

    Args:
        file: descriptor of the open file.
        content: bytes to write, in one call of the system.
        position: place of the first byte, from the file's start.
    """
    if hasattr(os, "pwrite"):
        return os.pwrite(file, content, position)
    os.lseek(file, position, os.SEEK_SET)
    return os.write(file, content)


def read_at(file: int, size: int, position: int) -> bytes:
    """Read at most `size` bytes of an open file, from a position on."""
    if hasattr(os, "pread"):
        return os.pread(file, size, position)
    os.lseek(file, position, os.SEEK_SET)
    return os.read(file, size)
