"""Rows of CSV and JSONL files, each with its line number, so that errors can name it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from dsd_trt.errors import InputError

Row: TypeAlias = tuple[int, dict[str, object]]


class LineError(ValueError):
    """Something is wrong with one line of a file.

    Attributes:
        line: its number, counted from 1.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def decode(content: bytes, name: str) -> str:
    """Text of a UTF-8 file, without its byte order mark.

    Args:
        content: all of the file.
        name: of the file, for the message.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} is not UTF-8 text (line {line})") from None


def csv_rows(text: str, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a CSV file with a header; blank lines are left out.

    Args:
        text: all of the file.
        columns: what the header must have; it may have more.

    Raises:
        LineError: not valid CSV, a column is missing, or a row is shorter or longer than the
            header.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if missing := [column for column in columns if column not in header]:
                    raise LineError(
                        reader.line_num,
                        f"no column {missing[0]!r}; the columns are {','.join(columns)}",
                    )
            elif len(cells) != len(header):
                raise LineError(
                    reader.line_num,
                    f"{len(cells)} cells under {len(header)} columns; "
                    'put a text that has commas in "quotes"',
                )
            else:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise LineError(reader.line_num, f"not valid CSV: {error}") from None


def jsonl_rows(text: str) -> Iterator[Row]:
    """Objects of a JSONL file; blank lines are left out.

    Raises:
        LineError: a line is not a JSON object.
    """
    for line, row in enumerate(io.StringIO(text, newline=None), start=1):
        if not row.strip():
            continue
        try:
            value = json.loads(row)
        except ValueError as error:
            raise LineError(line, f"not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise LineError(line, "not a JSON object")
        yield line, value


def is_unicode(text: str) -> bool:
    """False where a JSON escape left half of a surrogate pair."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False
