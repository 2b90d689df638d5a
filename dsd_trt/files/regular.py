"""Regular files alone: a pipe would hang whoever reads it, and a device may have no end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from dsd_trt.limits import FILE_BYTES, Limit

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading, never waiting for a writer.

    Raises:
        OSError: it cannot be opened, or is no regular file; `strerror` says what it is.
    """
    # First, since some devices do something on being opened.
    _require_regular(Path(path).stat(), path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        _require_regular(os.fstat(descriptor), path)  # again: it may be another one by now
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], most: Limit = FILE_BYTES) -> bytes:
    """All of a regular file.

    Raises:
        OSError: as for `open_regular`, or it has more than `most` bytes.
    """
    with open_regular(path) as stream:
        return read_bounded(stream, path, most, os.fstat(stream.fileno()).st_size)


def read_bounded(
    stream: BinaryIO, name: str | os.PathLike[str], most: Limit = FILE_BYTES, expected: int = 0
) -> bytes:
    """The rest of a stream, whatever it is.

    Args:
        stream: perhaps a pipe, or a file that grows.
        name: for the message.
        most: bytes that are read.
        expected: bytes that there should be.

    Raises:
        OSError: there is more.
    """
    parts, count, step = list[bytes](), 0, expected + 1 if expected else 1 << 20
    while not (fault := most.fault(max(count, expected))):
        chunk = stream.read(step)
        if not chunk:  # None where nothing is there, as in some files of /proc
            return b"".join(parts)
        parts.append(chunk)
        count, step = count + len(chunk), 1 << 20
    raise OSError(errno.EINVAL, fault, os.fspath(name))


def other_kind(mode: int) -> str:
    """What is wrong with what is neither a regular file nor a folder, by its mode."""
    return f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file"


def _require_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, other_kind(status.st_mode), os.fspath(path))
