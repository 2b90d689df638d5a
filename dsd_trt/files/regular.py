"""Regular files only: reading a pipe could block, and a device may be endless."""

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
    """Open a file for reading, without ever waiting for a writer.

    Raises:
        OSError: the file cannot be opened, or is not a regular file; `strerror` has its kind.
    """
    # Before opening: opening some devices has side effects.
    _require_regular(Path(path).stat(), path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        _require_regular(os.fstat(descriptor), path)  # again: the file may have been replaced
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], most: Limit = FILE_BYTES) -> bytes:
    """Read a whole regular file.

    Raises:
        OSError: the file cannot be opened, as for `open_regular`, or has more than `most` bytes.
    """
    with open_regular(path) as stream:
        return read_bounded(stream, path, most, os.fstat(stream.fileno()).st_size)


def read_bounded(
    stream: BinaryIO, name: str | os.PathLike[str], most: Limit = FILE_BYTES, expected: int = 0
) -> bytes:
    """Read the rest of a stream, up to a limit.

    Args:
        stream: binary stream, perhaps a pipe or a growing file.
        name: name of the stream, for the message.
        most: largest number of bytes to accept.
        expected: number of bytes to expect; None if unknown.

    Raises:
        OSError: the stream has more bytes than the limit.
    """
    parts, count, step = list[bytes](), 0, expected + 1 if expected else 1 << 20
    while not (fault := most.fault(max(count, expected))):
        chunk = stream.read(step)
        if not chunk:  # None if the stream has no size, as for some files in /proc
            return b"".join(parts)
        parts.append(chunk)
        count, step = count + len(chunk), 1 << 20
    raise OSError(errno.EINVAL, fault, os.fspath(name))


def other_kind(mode: int) -> str:
    """Message for a file mode that is neither a regular file nor a folder."""
    return f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file"


def _require_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, other_kind(status.st_mode), os.fspath(path))
