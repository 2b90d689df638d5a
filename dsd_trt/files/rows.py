"""Rows of CSV and JSONL files with their line numbers, for error messages."""

from __future__ import annotations

import csv
import io
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from dsd_trt.errors import InputError, counted
from dsd_trt.files.lfs import POINTER, is_pointer
from dsd_trt.files.schema import parse_json
from dsd_trt.limits import TEXT_CHARACTERS

Row: TypeAlias = tuple[int, dict[str, object]]

_LINE_END = re.compile(rb"\r\n|\r|\n")
_FIELD_SIZE, _NO_LIMIT = threading.Lock(), 2**31 - 1  # fits a C long on every platform


class LineError(ValueError):
    """One line of a file is invalid.

    Attributes:
        line: line number, from 1.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def decode(content: bytes, name: str) -> str:
    """Text of a UTF-8 file, without its byte order mark.

    Args:
        content: bytes of the whole file.
        name: name of the file, for the message.

    Raises:
        InputError: the content is not UTF-8, contains NUL (as UTF-16 and binary files do), or is a
            Git LFS pointer.
    """
    if is_pointer(content):
        raise InputError(f"cannot read {name}: {POINTER}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = error.start
    else:
        if (place := content.find(b"\0")) < 0:
            return text
    line = len(_LINE_END.findall(content, 0, place)) + 1
    raise InputError(f"{name} is not UTF-8 text (line {line}); save it as UTF-8")


def csv_rows(text: str, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a CSV file with a header; blank lines are skipped.

    Args:
        text: text of the whole file.
        columns: required columns; the header may have others.
        optional: columns used if present. No used column may occur twice.

    Raises:
        LineError: the CSV is invalid, a column is missing or duplicate, or a row's length differs
            from the header's.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    while True:
        first = reader.line_num + 1
        try:
            cells = next_csv_row(reader)
        except csv.Error as error:  # at the row's first line: an open quote spans lines
            raise LineError(first, f"not valid CSV: {error}") from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header and len(cells) != len(header):
            raise LineError(
                reader.line_num,
                f"{counted(len(cells), 'cell')} under {counted(len(header), 'column')}; "
                'put a text that has commas in "quotes"',
            )
        if header:
            yield reader.line_num, dict(zip(header, cells, strict=True))
            continue
        header = [cell.strip() for cell in cells]
        for column in columns:
            if column not in header:
                raise LineError(
                    reader.line_num,
                    f"no column {column!r} among {', '.join(map(repr, header))}; needed are "
                    f"{','.join(columns)}",
                )
        for column in (*columns, *optional):
            if header.count(column) > 1:
                raise LineError(reader.line_num, f"the column {column!r} is there twice")


def next_csv_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, with cells of any length; None at the end.

    The csv module's limit of 131,072 characters applies to the whole process; it is restored for
    other users.
    """
    with _FIELD_SIZE:
        limit = csv.field_size_limit(_NO_LIMIT)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(limit)


def jsonl_rows(text: str) -> Iterator[Row]:
    """Objects of a JSONL file; blank lines are skipped.

    Raises:
        LineError: a line is not a JSON object.
    """
    for line, row in enumerate(io.StringIO(text, newline=None), start=1):
        if not row.strip():
            continue
        try:
            value = parse_json(row)
        except ValueError as error:
            raise LineError(line, f"not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise LineError(line, "not a JSON object")
        yield line, value


def text_fault(text: str) -> str | None:
    """The reason why a string cannot be scored as a text; None if it can."""
    if fault := TEXT_CHARACTERS.fault(len(text)):
        return fault
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:  # from a JSON escape
        return "a surrogate, which is half a character"
    return None
