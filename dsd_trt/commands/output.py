"""Scored pairs, and writing any result to a file or standard output."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dsd_trt.errors import DsdError, InputError
from dsd_trt.files.folders import sync_folder
from dsd_trt.files.position import BINARY, read_at, write_at
from dsd_trt.files.unfinished import unfinished_name
from dsd_trt.files.whole import followed, is_device, whole
from dsd_trt.spans import span
from dsd_trt.tables.row import TableRow

if TYPE_CHECKING:
    import numpy as np

    from dsd_trt.words import Word


@dataclass(frozen=True)
class Record:
    """One pair of an output.

    Attributes:
        image: image as it is named in results.
        text: text that was scored with it.
        score: f(y, x); NaN if it has none.
        probability: match probability; None if there is none.
        error: why the pair has no score; None if it has one.
        reason: why a filter drops the pair; None if it does not.
        row: row of the table that the pair comes from.
        words: words of the text with the scores of their tokens; None if they were not asked for.
        place: number of its image among those given, or of its row, from 0.
    """

    image: str
    text: str
    score: float
    probability: float | None
    error: str | None = None
    reason: str | None = None
    row: TableRow | None = field(default=None, compare=False)
    words: tuple[Word, ...] | None = field(default=None, compare=False)
    place: int = field(default=0, compare=False)


def by_image(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records grouped by image, in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.image, []).append(record)
    return groups


def top_texts(records: Sequence[Record], k: int) -> list[Record]:
    """The k best texts of each image, best first; images stay in order."""
    return [
        record
        for of_image in by_image(records).values()
        for record in sorted(of_image, key=lambda record: -record.score)[:k]
    ]


class LineFile:
    """Appends lines as scores arrive, one unbuffered write per line.

    An existing file of that name is replaced by the first line written.

    Args:
        output: path of a file, or "-" for standard output.
        header: first line of the file, with its line break; "" for none.
        goes_on: whether the file may already begin with these lines, which are then kept.
    """

    def __init__(self, output: str, header: str, *, goes_on: bool) -> None:
        self._output, self._header, self._same = output, header, goes_on
        self._file: int | None = None
        self._end = 0
        self._device = output != "-" and is_device(Path(output))

    def add(self, lines: Iterable[str]) -> None:
        """Append lines, each with its line break.

        Raises:
            DsdError: the disk is full or cannot be written to; only whole lines were written.
        """
        if self._header:
            lines, self._header = itertools.chain([self._header], lines), ""
        if self._output == "-":
            content = "".join(lines)
            write_standard_output(content)
            self._end += len(content)
            return
        try:
            with span("write"):
                for line in lines:
                    self._write(line.encode())
        except BrokenPipeError:  # the reader closed the pipe: not an error
            raise
        except OSError as error:
            raise DsdError(f"cannot write {self._output!r}: {error.strerror}") from error

    def finish(self) -> None:
        """Truncate the file after its last line.

        Raises:
            DsdError: the disk cannot be written to, as for `add`.
        """
        self.add(())
        if self._output == "-" or self._device:
            return
        try:
            file = self._opened()
            os.ftruncate(file, self._end)
            os.fsync(file)
            sync_folder(followed(Path(self._output)).parent)
        except OSError as error:
            raise DsdError(f"cannot write {self._output!r}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file and keep its content."""
        if self._file is not None:
            os.close(self._file)

    def _opened(self) -> int:
        if self._file is None:
            path = Path(self._output)
            flags = BINARY | (os.O_WRONLY if self._device else os.O_RDWR | os.O_CREAT)
            self._file = os.open(path if self._device else followed(path), flags, 0o666)
            if not self._device and not self._same:
                os.ftruncate(self._file, 0)
        return self._file

    def _write(self, line: bytes) -> None:
        """Write each line in one call: a kill cannot split so short a write."""
        file = self._opened()
        if self._device:
            while line:
                line = line[os.write(file, line) :]
            return
        if self._same:
            self._same = read_at(file, len(line), self._end) == line
            if not self._same:
                os.ftruncate(file, self._end)
        written = len(line) if self._same else 0
        try:
            while written < len(line):
                written += write_at(file, line[written:], self._end + written)
        except BaseException:
            os.ftruncate(file, self._end)  # only whole lines
            raise
        self._end += len(line)


def refuse_unwritable(path: str) -> None:
    """Check before the work that its result can be written.

    Raises:
        InputError: the output cannot be written.
    """
    if path == "-":
        return
    try:
        if is_device(Path(path)):
            return
        target = followed(Path(path))
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with contextlib.suppress(FileNotFoundError):
            target.lstat()  # the name may be too long
        unfinished = target.with_name(unfinished_name(target.name))
        unfinished.open("w").close()
        unfinished.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path!r}: {error.strerror}{_remedy(path)}") from None


def _remedy(path: str) -> str:
    """What makes a file's folder, for the message that the file cannot be written."""
    folder = Path(path).parent
    if os.path.lexists(folder):
        return ""
    return f"; make its folder first: mkdir -p {shlex.quote(str(folder))}"


def refuse_input(path: str, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output that would overwrite an input.

    Raises:
        InputError: the output is one of the inputs.
    """
    if path == "-" or not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises on odd names)
        return
    target = os.path.realpath(path)
    if any(os.path.realpath(it) == target for it in inputs):
        raise InputError(f"{path!r} is read as an input: give another file to write, -o FILE")


def write_output(path: str, parts: Iterable[str]) -> None:
    """Write to a file atomically, or to standard output for "-".

    Raises:
        DsdError: the disk is full or cannot be written to; an existing file is unchanged.
    """
    if path == "-":
        write_standard_output("".join(parts))
        return
    with whole(Path(path)) as file:
        for part in parts:
            file.write(part.encode())


def write_standard_output(content: str) -> None:
    """Write to standard output, and flush.

    Raises:
        DsdError: standard output cannot be written to, for example on a full disk.
    """
    try:
        with span("write"):
            sys.stdout.write(content)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe: not an error
        raise
    except OSError as error:
        raise DsdError(f"cannot write standard output: {error.strerror}") from None


def shortest(number: np.float32) -> float:
    """The decimal number with the fewest digits that parses to the same float32."""
    return float(str(number))
