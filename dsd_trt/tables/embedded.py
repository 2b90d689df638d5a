"""Images of a table: named by their paths, or stored in a column of Parquet.

Data sets of images are often published as Parquet with the images in a column: a struct of `bytes`
and `path`, as the library `datasets` writes them, or binary values.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from dsd_trt.errors import ImageError, InputError, one_line
from dsd_trt.files.rows import text_fault
from dsd_trt.image.stored import StoredImage
from dsd_trt.tables.parquet import ArrowValues, ParquetTable
from dsd_trt.tables.row import TableRow
from dsd_trt.tables.table import Table

_DIGEST = 16  # bytes
_MAGICS = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"\0\0\0\x0cjP", "jp2"),
)


@dataclass(frozen=True)
class EmbeddedImage(StoredImage):
    """An image stored in a table; equal to others with the same bytes.

    Attributes:
        column: column of the table that has the image.
        row: number of its row, from 0.
        digest: hash of its bytes.
        path: path that the table gives the image; "" if it gives none.
        suffix: suffix that its bytes say, without the dot.
    """

    column: EmbeddedColumn = field(compare=False, repr=False)
    row: int = field(compare=False)
    digest: bytes
    path: str = field(compare=False)
    suffix: str = field(compare=False)

    @property
    def name(self) -> str:
        """Its path in the table, or else its row."""
        return self.path or f"row {self.row + 1}"

    @property
    def file_name(self) -> str:
        """Its path in the table, or else a name made of its row."""
        if PurePath(self.path).suffix:
            return self.path
        return f"row-{self.row + 1:09d}.{self.suffix}"

    def content(self) -> bytes:
        """Encoded image, read again from the table.

        Raises:
            ImageError: the table cannot be read, or was changed since.
        """
        return self.column.content(self)


class ImageColumn:
    """The column of a table's images.

    Args:
        table: table with an image per row.
        name: name of the column.

    Attributes:
        name: name of the column.
        embedded: whether the images themselves are stored in the column.

    Raises:
        InputError: the column has neither paths nor images.
    """

    def __init__(self, table: Table, name: str) -> None:
        self.name: str = name
        self.embedded: bool = False
        self._column: EmbeddedColumn | None = None
        if not isinstance(table.reader, ParquetTable):
            return
        if table.reader.holds_bytes(name):
            self.embedded, self._column = True, EmbeddedColumn(table.reader, name)
        elif kind := table.reader.kind(name):
            raise InputError(
                f"{table.name}: the column {name!r} has neither paths nor images, but "
                f"{one_line(kind, 80)}. Name the images' column: --image-column NAME"
            )

    def of(self, row: TableRow, *, strip: bool = False) -> str | EmbeddedImage:
        """The image of a row: its path, or the image that is stored.

        Args:
            row: row of the table.
            strip: whether to remove spaces around a path.

        Raises:
            ValueError: the row is malformed, or has no image; the message names the column.
        """
        if self._column is None:
            return row.text(self.name, strip=strip)
        content, path = _content(row, self.name), _path(row, self.name)
        if content is None:
            if not path:
                raise ValueError(f"{self.name} is empty")
            if fault := text_fault(path):
                raise ValueError(f"{self.name} has {fault}")
            return path
        digest = hashlib.blake2b(content, digest_size=_DIGEST).digest()
        return EmbeddedImage(self._column, _number(row), digest, path, _suffix(content))

    def path(self, row: TableRow) -> str:
        """Path of the file that a row names; "" if the image is stored, or there is none."""
        if self._column is not None:
            return "" if _content(row, self.name) is not None else _path(row, self.name)
        value = row.values.get(self.name)
        return value if isinstance(value, str) else ""

    def shown(self, row: TableRow) -> object:
        """What a row has, for people: the path, or the row if an image without path is stored."""
        if self._column is None:
            return row.values.get(self.name)
        if path := _path(row, self.name):
            return path
        return None if _content(row, self.name) is None else row.place


class EmbeddedColumn:
    """A column of a Parquet file that has images; reads them by their rows.

    Threads may share it. Rows are fast in the file's order.

    Args:
        table: reader of the file.
        name: name of the column.
    """

    def __init__(self, table: ParquetTable, name: str) -> None:
        self._table, self._name = table, name
        self._lock = threading.Lock()
        self._batches: Iterator[tuple[int, Any]] = iter(())
        self._next = -1  # row that the next batch begins with; -1 before the first
        self._recent: list[tuple[int, Any]] = []  # threads read a little out of order

    def content(self, image: EmbeddedImage) -> bytes:
        """Encoded image, as for `EmbeddedImage.content`."""
        with self._lock:
            try:
                row = self._row(image.row)
            except (InputError, OSError) as error:
                self._next = -1
                raise ImageError(getattr(error, "strerror", None) or str(error)) from None
        content = None if row is None else _content(row, self._name)
        if content is not None:
            digest = hashlib.blake2b(content, digest_size=_DIGEST).digest()
            if digest == image.digest:
                return content
        raise ImageError(f"{self._table.name} was changed while it was read. Run it again")

    def _row(self, number: int) -> TableRow | None:
        for start, batch in self._recent:
            if start <= number < start + batch.num_rows:
                return TableRow("", ArrowValues(batch, number - start, number))
        if not self._next <= number < self._table.end_of_group(self._next):
            self._batches = self._table.batches([self._name], number)
        for start, batch in self._batches:
            self._next = start + batch.num_rows
            if number < self._next:
                self._recent = [*self._recent[-1:], (start, batch)]
                return TableRow("", ArrowValues(batch, number - start, number))
        return None


def _number(row: TableRow) -> int:
    assert isinstance(row.values, ArrowValues)  # of Parquet
    return row.values.number


def _content(row: TableRow, column: str) -> bytes | None:
    value = row.values.get(column)
    found = value.get("bytes") if isinstance(value, dict) else value
    return found if isinstance(found, bytes) else None


def _path(row: TableRow, column: str) -> str:
    value = row.values.get(column)
    path = value.get("path") if isinstance(value, dict) else None
    return path.strip() if isinstance(path, str) else ""


def _suffix(content: bytes) -> str:
    """Suffix of an image's format, by its first bytes; "jpg" for others."""
    for magic, suffix in _MAGICS:
        if content.startswith(magic):
            return suffix
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return "avif" if content[4:12] in (b"ftypavif", b"ftypavis") else "jpg"
