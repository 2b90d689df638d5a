"""The bytes of a table, which can be read more than once: a file's, or those of standard input."""

from __future__ import annotations

import functools
import io
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from dsd_trt.errors import DsdError, InputError
from dsd_trt.files.regular import open_regular
from dsd_trt.files.temporary import no_room

STANDARD_INPUT = "standard input"
"""Name of a table that is read from standard input."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class TableContent:
    """The bytes of a table.

    Attributes:
        name: path of the file, or "standard input", for messages.
        folder: folder that paths in the table are relative to.
        open: function that opens the bytes for reading, from their start.
    """

    name: str
    folder: Path
    open: Callable[[], BinaryIO]

    @classmethod
    def of(cls, path: Path) -> TableContent:
        """The content of a file, or of standard input for "-".

        Standard input is copied to a temporary file, as tables are opened and read more than once.
        Paths in it are relative to the current folder.

        Raises:
            InputError: there is no standard input, or it cannot be read.
            DsdError: the disk of temporary files is full.
        """
        if str(path) != "-":
            return cls(str(path), path.parent, lambda: open_regular(path))
        if sys.stdin is None:
            raise InputError("there is no standard input to read a table from")
        kept = _copied(sys.stdin.buffer)
        lock = threading.Lock()
        return cls(
            STANDARD_INPUT,
            Path(),
            lambda: cast(BinaryIO, io.BufferedReader(_Reading(kept, lock), _CHUNK)),
        )


class _Reading(io.RawIOBase):
    """Reads a file from its start, whatever else reads the same open file."""

    def __init__(self, file: IO[bytes], lock: threading.Lock) -> None:
        super().__init__()
        self._file, self._lock, self._at = file, lock, 0
        self._size = file.seek(0, io.SEEK_END)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        with self._lock:
            self._file.seek(self._at)
            content = self._file.read(len(view))
        view[: len(content)] = content
        self._at += len(content)
        return len(content)


@functools.lru_cache(1)
def _copied(stream: BinaryIO) -> IO[bytes]:
    """A temporary file, which has no name, with the rest of a stream; the same if asked again."""

    def read(size: int) -> bytes:
        try:
            return stream.read(size)
        except OSError as error:
            raise InputError(f"cannot read standard input: {error.strerror}") from None

    kept = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
    try:
        for chunk in iter(lambda: read(_CHUNK), b""):
            kept.write(chunk)
        kept.flush()
    except OSError as error:
        raise DsdError(no_room("for standard input", error)) from error
    return kept
