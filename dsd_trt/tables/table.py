"""A table of the user: its format, its columns and its rows."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from dsd_trt.errors import InputError, counted
from dsd_trt.files.lfs import POINTER, is_pointer
from dsd_trt.tables.content import STANDARD_INPUT, TableContent
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
_TAR, _TAR_AT = b"ustar", 257  # place of the name in a tar file's first header
_UTF16 = "it is UTF-16: save it as UTF-8, or convert it: iconv -f {} -t UTF-8"
_PICKLE = "it is a pickle: write a table as CSV or Parquet"
_IMAGE = "it is an image, and a table names images by their paths, one in each row"
_OTHERS = {
    b"\x89PNG": _IMAGE,
    b"\xff\xd8\xff": _IMAGE,
    b"GIF8": _IMAGE,
    b"RIFF": _IMAGE,
    b"\xff\xfe": _UTF16.format("UTF-16"),
    b"\xfe\xff": _UTF16.format("UTF-16"),
    b"\xd0\xcf\x11\xe0": "it is a spreadsheet: save it as CSV",
    b"SQLite format 3": "it is a database: export one of its tables as CSV",
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"\x93NUMPY": "it is an array of numpy: write a table as CSV",
    b"\x89HDF": "it is an HDF5 file: write a table as CSV or Parquet",
    b"ORC": "it is an ORC file: save it as Parquet",
    b"Obj\x01": "it is an Avro file: save it as Parquet",
    b"\x1f\x8b": "it is compressed: gunzip unpacks it",
    b"BZh": "it is compressed: bunzip2 unpacks it",
    b"\xfd7zXZ": "it is compressed: unxz unpacks it",
    b"\x28\xb5\x2f\xfd": "it is compressed: unzstd unpacks it",
    b"PK": "it is a zip archive or a spreadsheet: save it as CSV, or unpack it",
    b"ARROW1": "it is an Arrow file: save it as Parquet",
}


class Table:
    """A CSV, JSONL or Parquet file, read row by row however long it is; open one with `open`.

    Attributes:
        name: name of the table for messages: the file's path, or "standard input".
        folder: folder that image paths in it are relative to: the file's, or the current one of
            standard input, unless another is given.
        form: format of the file: "csv", "jsonl" or "parquet".
        reader: the reader of that format.
        columns: names of the columns in order, distinct. JSONL has the keys of all its rows.
        doubled: names that the file gives to several columns.
        start: place of the names of the columns, for messages.
    """

    def __init__(self, content: TableContent, form: Form, images: Path | None = None) -> None:
        self.name: str = content.name
        self.form: Form = form
        self.folder: Path = content.folder if images is None else images
        self.reader: Reader = _READERS[form](content)
        self.doubled: frozenset[str] = self.reader.doubled
        self.start = "line 1" if form == "csv" else "its rows" if form == "jsonl" else "its schema"

    @classmethod
    def open(cls, path: str | os.PathLike[str], images: Path | None = None) -> Table:
        """Open a table; the format is recognised by the content, then by the suffix.

        Args:
            path: path of a file; "-" is standard input, see `TableContent.of`.
            images: folder that image paths in it are relative to; None is the file's, or the
                current one of standard input.

        Raises:
            InputError: there is no such file, it is no table, or its header is malformed.
            MissingExtraError: it is Parquet, and the package that reads it is not installed.
            DsdError: standard input does not fit the disk of temporary files.
        """
        try:
            content = TableContent.of(Path(path))
            with content.open() as file:
                head = file.read(1024)
            return cls(content, _form(content.name, head), images)
        except OSError as error:
            remedy = tables_in(Path(path)) if isinstance(error, IsADirectoryError) else ""
            raise InputError(
                f"cannot read the table {str(path)!r}: {error.strerror}{remedy}"
            ) from None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; for JSONL, the first use reads the whole file."""
        return self.reader.columns

    @property
    def first_columns(self) -> tuple[str, ...]:
        """Names of the columns, for messages; for JSONL, those of the first rows."""
        reader = self.reader
        return reader.first_columns if isinstance(reader, JsonLinesTable) else reader.columns

    def may_have(self, start: str) -> bool:
        """Whether a column's name may begin so; quick, and never wrong if it says no."""
        if isinstance(self.reader, JsonLinesTable):
            return self.reader.may_have(start)
        return any(it.startswith(start) for it in self.columns)

    def has(self, column: str) -> bool:
        """Whether the table has a column; in JSONL, whether a row has the key."""
        if self.form != "jsonl":
            return column in self.columns
        if not self.may_have(f'{column}"'):
            return False
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
            raise InputError(f"cannot read the table {self.name!r}: {error.strerror}") from None

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
        return InputError(f"{self.name}, {row.place}: {reason}")


def _form(name: str, head: bytes) -> Form:
    """Format of a table, from its first bytes and its name.

    Raises:
        InputError: it is no table.
    """
    suffix = Path(name).suffix
    form = _SUFFIXES.get(suffix.lower())
    if not head:
        raise InputError(
            f"{name} is empty; write a header, such as image,text, and a row per line"
            if form in ("csv", None)
            else f"{name} is empty: it has 0 bytes. Write the table again"
        )
    if head.startswith(_PARQUET):
        return "parquet"
    if form == "parquet":
        raise InputError(f"{name} is no Parquet file, though its name ends in {suffix}")
    if is_pointer(head):
        raise InputError(f"cannot read {name!r}: {POINTER}")
    for magic, remedy in _OTHERS.items():
        if head.startswith(magic) and (b"\0" in head or not head.isascii()):
            raise InputError(f"{name} is no CSV, JSONL or Parquet file: {remedy}")
    if head[_TAR_AT:].startswith(_TAR):
        raise InputError(
            f"{name} is a tar file, no table. If its images have texts: dsd-trt score --pairs, "
            "or dsd-trt filter. Other commands take a table that names the unpacked images"
        )
    if encoding := _utf16(head):
        raise InputError(f"{name} is no CSV, JSONL or Parquet file: {_UTF16.format(encoding)}")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:9].lower() == b"<!doctype" or text[:5].lower() in (b"<html", b"<?xml"):
        raise InputError(f"{name} is a web page or XML, no table: download the file itself")
    start = text[:1]
    if start == b"{" or form == "jsonl":
        return "jsonl"
    if start == b"[" and form is None:
        raise InputError(
            f"{name} is a JSON list; write its objects on a line each: jq -c '.[]'"
            f"{'' if name == STANDARD_INPUT else f' {name}'}"
        )
    return "csv"


def _utf16(head: bytes) -> str:
    """Encoding of a text in UTF-16 without a byte order mark, by its ASCII; "" for others."""
    pairs = len(head) // 2
    for zeros, encoding in ((head[1::2], "UTF-16LE"), (head[::2], "UTF-16BE")):
        if pairs and zeros.count(0) > pairs / 2 and head.count(0) <= pairs:
            return encoding
    return ""


def tables_in(folder: Path) -> str:
    """End of the message that a folder is no table: the tables in it; "" if there are none."""
    with contextlib.suppress(OSError):
        found = sorted(
            it for it in (*folder.iterdir(), *folder.glob("data/*")) if it.suffix in _SUFFIXES
        )
        if found:
            example = shlex.quote(str(found[0]))
            of_all = f", one of its {counted(len(found), 'table')}" if len(found) > 1 else ""
            return f"; is {example} meant{of_all}?"
    return ""
