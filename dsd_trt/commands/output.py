"""Scores as programs read them, and where any result is written."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import DsdError, InputError
from dsd_trt.files.folders import sync_folder
from dsd_trt.files.unfinished import unfinished_name
from dsd_trt.files.whole import followed, is_device, whole
from dsd_trt.image.files import printable


@dataclass(frozen=True)
class Record:
    """One scored pair."""

    image: str
    text: str
    score: float
    probability: float


def to_records(
    pairs: Iterable[tuple[str, str]],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float32],
) -> list[Record]:
    """Records of the pairs that could be scored.

    Args:
        pairs: image and text of each score, in order.
        scores: of any shape, NaN where there is none.
        probabilities: of the same shape.
    """
    return [
        Record(printable(image), text, _shortest(score), _shortest(probability))
        for (image, text), score, probability in zip(
            pairs, scores.ravel(), probabilities.ravel(), strict=True
        )
        if not np.isnan(score)
    ]


def by_image(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Every image's records, images in order of appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.image, []).append(record)
    return groups


def top_texts(records: Sequence[Record], k: int) -> list[Record]:
    """The k best texts of every image, best first; images stay in order."""
    return [
        record
        for of_image in by_image(records).values()
        for record in sorted(of_image, key=lambda record: -record.score)[:k]
    ]


class LineFile:
    """JSONL or CSV that grows as scores come in: whole lines, each handed to the system at once.

    An older file of that name is replaced when the first line is there.

    Args:
        output: a file, or - for standard output.
        form: "jsonl" or "csv".
        goes_on: whether the file may begin with these lines already, which are then left alone.
    """

    def __init__(self, output: str, form: str, *, goes_on: bool) -> None:
        self._output, self._form, self._same = output, form, goes_on
        self._file: int | None = None
        self._end = 0
        self._device = output != "-" and is_device(Path(output))

    def add(self, records: Sequence[Record]) -> None:
        """Write records.

        Raises:
            DsdError: the disk is full, or the like; what was written are whole lines.
        """
        lines = _csv_lines(records) if self._form == "csv" else map(_json_line, records)
        if self._end == 0 and self._form == "csv":
            lines = itertools.chain(["image,text,score,probability\n"], lines)
        if self._output == "-":
            content = "".join(lines)
            write_standard_output(content)
            self._end += len(content)
            return
        try:
            for line in lines:
                self._write(line.encode())
        except BrokenPipeError:  # the reader has seen enough: no error of ours
            raise
        except OSError as error:
            raise DsdError(f"cannot write {self._output!r}: {error.strerror}") from error

    def finish(self) -> None:
        """End the file where its lines end.

        Raises:
            DsdError: as for `add`.
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
        """Close the file; what is in it stays."""
        if self._file is not None:
            os.close(self._file)

    def _opened(self) -> int:
        if self._file is None:
            path = Path(self._output)
            flags = os.O_WRONLY if self._device else os.O_RDWR | os.O_CREAT
            self._file = os.open(path if self._device else followed(path), flags, 0o666)
            if not self._device and not self._same:
                os.ftruncate(self._file, 0)
        return self._file

    def _write(self, line: bytes) -> None:
        """Write a line by itself: a kill cannot come between the halves of what is so short."""
        file = self._opened()
        if self._device:
            while line:
                line = line[os.write(file, line) :]
            return
        if self._same:
            self._same = os.pread(file, len(line), self._end) == line
            if not self._same:
                os.ftruncate(file, self._end)
        written = len(line) if self._same else 0
        try:
            while written < len(line):
                written += os.pwrite(file, line[written:], self._end + written)
        except BaseException:
            os.ftruncate(file, self._end)  # whole lines alone
            raise
        self._end += len(line)


def json_parts(records: Iterable[Record]) -> Iterator[str]:
    """One list, a record a line."""
    empty = True
    for record in records:
        yield f"{'[' if empty else ','}\n  {_object(record)}"
        empty = False
    yield "[]\n" if empty else "\n]\n"


def _json_line(record: Record) -> str:
    return f"{_object(record)}\n"


def _csv_lines(records: Iterable[Record]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for record in records:
        writer.writerow((record.image, record.text, record.score, record.probability))
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def refuse_unwritable(path: str) -> None:
    """Find out before the work that its result could not be written.

    Raises:
        InputError: nothing can be written there.
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
            target.lstat()  # its name may be too long
        unfinished = target.with_name(unfinished_name(target.name))
        unfinished.open("w").close()
        unfinished.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path!r}: {error.strerror}") from None


def refuse_input(path: str, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output that would take the place of what is read.

    Raises:
        InputError: it is one of the inputs.
    """
    if path == "-" or not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises on odd names)
        return
    target = os.path.realpath(path)
    if any(os.path.realpath(it) == target for it in inputs):
        raise InputError(f"{path!r} is read as an input: give another file to write, -o FILE")


def write_output(path: str, parts: Iterable[str]) -> None:
    """Write to a file, whole or not at all, or to stdout for "-".

    Raises:
        DsdError: the disk is full, or the like; an older file of that name is left as it was.
    """
    if path == "-":
        write_standard_output("".join(parts))
        return
    with whole(Path(path)) as file:
        for part in parts:
            file.write(part.encode())


def write_standard_output(content: str) -> None:
    """Write, and hand to whoever reads.

    Raises:
        DsdError: the disk is full, or the like.
    """
    try:
        sys.stdout.write(content)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: no error of ours
        raise
    except OSError as error:
        raise DsdError(f"cannot write standard output: {error.strerror}") from None


def _shortest(number: np.float32) -> float:
    """The number with the fewest digits that is read back as the same float32."""
    return float(str(number))


def _object(record: Record) -> str:
    return json.dumps(asdict(record), ensure_ascii=False)
