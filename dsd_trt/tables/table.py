"""A table of the user: its format, its columns and its rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from dsd_trt.errors import InputError
from dsd_trt.files.lfs import POINTER, is_pointer
from dsd_trt.files.regular import open_regular
from dsd_trt.tables.delimited import DelimitedTable
from dsd_trt.tables.json_lines import JsonLinesTable
from dsd_trt.tables.parquet import ParquetTable
from dsd_trt.tables.row import TableRow

Form: TypeAlias = Literal["csv", "jsonl", "parquet"]

Reader: TypeAlias = DelimitedTable | JsonLinesTable | ParquetTable

_READERS: dict[Form, type[Reader]] = {
    "csv": DelimitedTable,
    "jsonl": JsonLinesTable,
    "parquet": ParquetTable,
}
_SUFFIXES: dict[str, Form] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_PARQUET = b"PAR1"
_OTHERS = {
    b"\x1f\x8b": "it is compressed: gunzip unpacks it",
    b"BZh": "it is compressed: bunzip2 unpacks it",
    b"\xfd7zXZ": "it is compressed: unxz unpacks it",
    b"\x28\xb5\x2f\xfd": "it is compressed: unzstd unpacks it",
    b"PK": "it is a zip archive or a spreadsheet: save it as CSV",
    b"ARROW1": "it is an Arrow file: save it as Parquet",
}


class Table:
    """A CSV, JSONL or Parquet file, read row by row however long it is; open one with `open`.

    Attributes:
        path: path of the file. Image paths in it are relative to its folder.
        form: format of the file: "csv", "jsonl" or "parquet".
        reader: the reader of that format.
        columns: names of the columns in order, distinct. JSONL has the keys of all its rows.
        doubled: names that the file gives to several columns.
        start: place of the names of the columns, for messages.
    """

    def __init__(self, path: Path, form: Form) -> None:
        self.path, self.form = path, form
        self.reader: Reader = _READERS[form](path)
        self.doubled = self.reader.doubled
        self.start = "line 1" if form == "csv" else "its rows" if form == "jsonl" else "its schema"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Table:
        """Open a table; the format is recognised by the content, then by the suffix.

        Raises:
            InputError: there is no such file, it is no table, or its header is malformed.
            MissingExtraError: it is Parquet, and the package that reads it is not installed.
        """
        path = Path(path)
        try:
            with open_regular(path) as file:
                head = file.read(1024)
            return cls(path, _form(path, head))
        except OSError as error:
            raise InputError(f"cannot read the table {str(path)!r}: {error.strerror}") from None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; for JSONL, the first use reads the whole file."""
        return self.reader.columns

    def has(self, column: str) -> bool:
        """Whether the table has a column; in JSONL, whether a row has the key."""
        if self.form != "jsonl":
            return column in self.columns
        return any(column in row.values for row in self.rows())

    def rows(self, only: Sequence[str] | None = None) -> Iterator[TableRow]:
        """Rows in order; malformed ones have an error.

        Args:
            only: columns that are needed; None is all. Other columns need not be read.

        Raises:
            InputError: the file cannot be read to its end, or is not UTF-8.
        """
        try:
            yield from self.reader.rows(only)
        except OSError as error:
            raise InputError(
                f"cannot read the table {str(self.path)!r}: {error.strerror}"
            ) from None

    def sound_rows(self, only: Sequence[str] | None = None) -> Iterator[TableRow]:
        """Rows in order, as for `rows`.

        Raises:
            InputError: a row is malformed; the message has its place.
        """
        for row in self.rows(only):
            if row.error is not None:
                raise self.fault(row, row.error)
            yield row

    def fault(self, row: TableRow, reason: object) -> InputError:
        """An error about one row, with its place."""
        return InputError(f"{self.path}, {row.place}: {reason}")


def _form(path: Path, head: bytes) -> Form:
    """Format of a file, from its first bytes and its name.

    Raises:
        InputError: it is no table.
    """
    form = _SUFFIXES.get(path.suffix.lower())
    if head.startswith(_PARQUET):
        return "parquet"
    if form == "parquet":
        raise InputError(f"{path} is no Parquet file, though its name ends in {path.suffix}")
    if is_pointer(head):
        raise InputError(f"cannot read {str(path)!r}: {POINTER}")
    for magic, remedy in _OTHERS.items():
        if head.startswith(magic) and (b"\0" in head or not head.isascii()):
            raise InputError(f"{path} is no CSV, JSONL or Parquet file: {remedy}")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"{" or form == "jsonl":
        return "jsonl"
    if start == b"[" and form is None:
        raise InputError(
            f"{path} is a JSON list; write its objects on a line each: jq -c '.[]' {path}"
        )
    return "csv"
