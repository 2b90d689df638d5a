"""Rows of CSV files; a malformed row never costs the others."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence

from dsd_trt.errors import InputError, counted
from dsd_trt.files.rows import next_csv_row
from dsd_trt.tables.content import TableContent
from dsd_trt.tables.row import TableRow
from dsd_trt.tables.text_file import text_lines

_DELIMITERS = ",\t;"
_COMPLAINTS = {"unexpected end of data": "a quote is not closed"}
_AFTER_SPACE = 'a quote counts at the start of its cell alone: write ,"a, b" and not , "a, b"'
_QUOTE_AFTER_SPACE = re.compile(r'[ \t]+"')
_LONGEST_ROW = 1 << 26  # characters: an open quote would otherwise take the rest of the file


class DelimitedTable:
    """A CSV file with a header; cells may be separated by tabs or semicolons as well.

    Blank lines are no rows.

    Args:
        content: content of the CSV file.

    Attributes:
        columns: names of the columns, distinct: a second `x` is `x_2`.
        doubled: names that the header has more than once.

    Raises:
        InputError: the file is not UTF-8, has no header, or its header is malformed.
        OSError: the file cannot be read.
    """

    def __init__(self, content: TableContent) -> None:
        self._content = content
        line, header, error, self._delimiter = min(
            (_header(content, delimiter) for delimiter in _DELIMITERS),
            key=lambda it: -len(it[1]),
        )
        if error is not None:
            raise InputError(f"{content.name}, line {line}: {error}")
        if not header:
            raise InputError(
                f"{content.name} is empty; write a header, such as image,text, and a row per line"
            )
        self.columns: tuple[str, ...] = distinct(header)
        self.doubled: frozenset[str] = frozenset(name for name in header if header.count(name) > 1)

    def rows(self, only: object = None) -> Iterator[TableRow]:
        """Rows in order; `only` has no use, as a line is always read whole."""
        records = _records(self._content, self._delimiter)
        next(records)  # the header
        width = len(self.columns)
        for line, cells, error in records:
            if error is None and len(cells) != width:
                error = f"{counted(len(cells), 'cell')} under {counted(width, 'column')}"
                if len(cells) > width:
                    error += '; put a text that has commas in "quotes"'
            padded = cells + [""] * (width - len(cells))
            yield TableRow(f"line {line}", dict(zip(self.columns, padded, strict=False)), error)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names in order, each once: what has a name again gets a number."""
    found = dict[str, None]()
    for name in names:
        unique, number = name, 2
        while unique in found or (unique != name and unique in names):
            unique, number = f"{name}_{number}", number + 1
        found[unique] = None
    return tuple(found)


def _header(content: TableContent, delimiter: str) -> tuple[int, list[str], str | None, str]:
    """Line number, cells and fault of the header, if the cells are separated by a delimiter."""
    line, cells, error = next(_records(content, delimiter), (1, [], None))
    return line, [cell.strip() for cell in cells], error, delimiter


class _Lines:
    """Lines for the csv module, which may be given back."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.taken: list[str] = []  # since the last row
        self._lines, self._waiting, self._size = lines, deque[str](), 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._lines)
        self.taken.append(line)
        self._size += len(line)
        if self._size > _LONGEST_ROW and len(self.taken) > 1:
            raise csv.Error("a quote is not closed")
        return line

    def begin_row(self) -> None:
        """The lines taken so far are used."""
        self.taken.clear()
        self._size = 0

    def give_back(self, kept: int) -> None:
        """Lines taken since the row began are to be read again, except the first `kept`."""
        self._waiting.extendleft(reversed(self.taken[kept:]))
        del self.taken[kept:]


def _records(content: TableContent, delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """Line number, cells and fault of each row, the header included.

    A line with a faulty quote is a row of its own: the lines after it are read again.
    """
    lines = _Lines(text_lines(content, ""))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1
    while True:
        lines.begin_row()
        error = None
        try:
            cells = next_csv_row(reader)
        except csv.Error as fault:
            error = f"not valid CSV: {_COMPLAINTS.get(str(fault), fault)}"
            lines.give_back(1)
            alone = lines.taken[0].rstrip("\r\n")
            cells = next_csv_row(csv.reader([alone], delimiter=delimiter)) or []
        if cells is None:
            return
        if error is None and _begins_after_space(cells, lines.taken, delimiter):
            error = _AFTER_SPACE
        if len(cells) > 1 or "".join(cells).strip():
            yield line, cells, error
        line += len(lines.taken)


def _begins_after_space(cells: Sequence[str], lines: Sequence[str], delimiter: str) -> bool:
    """Whether a cell has spaces before its quote, which is then a part of it."""
    for place, cell in enumerate(cells):
        if _QUOTE_AFTER_SPACE.match(cell):  # the spaces may be quoted as well
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
            return (next_csv_row(reader) or [])[place : place + 1] != [cell]
    return False
