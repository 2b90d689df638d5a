"""Tar files read to their last byte; data that tarfile skips silently is read or reported."""

from __future__ import annotations

import contextlib
import gzip
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dsd_trt.errors import ImageError
from dsd_trt.files.regular import open_regular
from dsd_trt.files.temporary import no_room

BLOCK = tarfile.BLOCKSIZE
_MAGIC, _MAGIC_AT = b"ustar", 257  # magic of every header since POSIX.1-1988, and its offset
_MOST = 2**31
"""Largest member that is read, in bytes; a sparse one of kilobytes may declare terabytes."""

_GZIP = b"\x1f\x8b"
_NOT_READ = {
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
}


class CutOffError(ImageError):
    """A member's content is truncated."""


class Tar:
    """A tar file in which every existing member is found.

    `tarfile` stops without an error at a damaged header, at an end mark followed by another tar,
    and at the end of a truncated file. This class continues at the next header.

    Args:
        stream: uncompressed and seekable binary file.

    Attributes:
        damage: descriptions of all data that could not be read so far.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.damage: list[str] = []
        self._stream = stream
        self._size = stream.seek(0, os.SEEK_END)
        self._file = _TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape")

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Members in their order, including those of appended tars.

        Raises:
            ImageError: there is no header in the whole file.
            OSError: the file cannot be read.
        """
        at, found, ended = 0, False, False  # ended: nothing indicates more data
        while at < self._size:
            self._stream.seek(at)
            block = self._stream.read(BLOCK)
            if not any(block) and (ended or len(block) == BLOCK):
                at, ended = at + BLOCK, True
                self._file.pax_headers = {}  # an appended tar has its own global headers
                continue
            if (member := self.member(at)) is None:
                following = self._next_header(at)
                if following == self._size and not (found or ended):
                    raise ImageError("not a tar file")
                self.damage.append(f"bytes {at} to {following - 1} are no tar: damaged or cut off")
                at, ended = following, True
                continue
            following, found, ended = self._file.offset, True, False
            if following > self._size:
                self.damage.append(f"cut off within {member.name!r}")
                ended = True
            yield member
            at = following
        if not ended:
            self.damage.append("no mark of the end: it may be cut off")

    def member(self, at: int) -> tarfile.TarInfo | None:
        """The member with its header at an offset; None if there is none or it is damaged."""
        self._stream.seek(at)
        try:
            member = tarfile.TarInfo.fromtarfile(self._file)
        except OSError:
            raise
        except Exception:  # for damaged headers, tarfile may raise almost anything
            return None
        return member if member.size >= 0 and self._file.offset > at else None

    def content(self, start: int) -> bytes:
        """Content of the regular member with its header at an offset.

        Raises:
            CutOffError: the file ends before the member does.
            ImageError: the member is too large.
        """
        member = self.member(start)
        if member is None or member.size > _MOST:
            raise ImageError(f"more than {_MOST >> 30} GiB")
        try:
            stream = self._file.extractfile(member)
            return stream.read() if stream else b""
        except tarfile.ReadError:
            raise CutOffError("cut off with its tar file") from None

    def _next_header(self, at: int) -> int:
        """Offset of the next header; after a truncation it need not be aligned."""
        start, window = at, b""  # the window ends at `start`
        self._stream.seek(start)
        while chunk := self._stream.read(1 << 16):
            window = window[1 - len(_MAGIC) :] + chunk
            start += len(chunk)
            place = -1
            while (place := window.find(_MAGIC, place + 1)) >= 0:
                header = start - len(window) + place - _MAGIC_AT
                if header > at and self._is_header(header):
                    return header
            self._stream.seek(start)
        return self._size

    def _is_header(self, at: int) -> bool:
        self._stream.seek(at)
        try:
            tarfile.TarInfo.frombuf(self._stream.read(BLOCK), "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            return False
        return True


class _TarFile(tarfile.TarFile):
    """Gives `tarfile`'s header parser its position in a stream."""

    def next(self) -> None:
        """No member: otherwise the constructor would raise for a damaged first one."""


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[Tar]:
    """Open a tar file; a gzipped one is decompressed to a temporary file.

    Raises:
        ImageError: the file is empty, compressed in another format, or too large for the temporary
            disk.
        OSError: the file cannot be read.
    """
    with open_regular(path) as stream:
        magic = stream.read(6)
        stream.seek(0)
        if not magic:
            raise ImageError("the file is empty")
        for start, (name, command) in _NOT_READ.items():
            if magic.startswith(start):
                raise ImageError(f"compressed with {name}, which is not read; {command} unpacks it")
        if not magic.startswith(_GZIP):
            yield Tar(stream)
            return
        with tempfile.TemporaryFile() as unpacked:
            damage = _unpack(stream, unpacked)
            archive = Tar(unpacked)
            archive.damage += damage
            yield archive


def _unpack(compressed: IO[bytes], unpacked: IO[bytes]) -> list[str]:
    """Decompress as much as possible; return the fault of the rest, if any."""
    with gzip.GzipFile(fileobj=compressed) as stream:
        while True:
            try:
                content = stream.read1(1 << 20)  # `read` loses the data before an error
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                return [f"gzip: {error}"]
            if not content:
                return []
            try:
                unpacked.write(content)
                unpacked.flush()
            except OSError as error:
                raise ImageError(no_room("to unpack it", error)) from None
