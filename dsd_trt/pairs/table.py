"""Pairs of a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dsd_trt.errors import InputError, one_line
from dsd_trt.jobs import Scorable
from dsd_trt.pairs.images import NamedImages
from dsd_trt.pairs.source import Pair
from dsd_trt.results import Failure
from dsd_trt.tables.columns import ColumnNames
from dsd_trt.tables.parquet import ParquetTable
from dsd_trt.tables.row import TableRow
from dsd_trt.tables.table import Table
from dsd_trt.tables.values import to_cell


class TablePairs:
    """Rows of a table as pairs, each in its place.

    Args:
        table: table with a pair per row.
        columns: names of its columns.
        images: where the images are, as for `NamedImages`; None is the table's folder.

    Attributes:
        name: path of the table.
        table: table with a pair per row.
        image_column: column of the images' names.
        text_column: column with what is scored with each image.
        images: where images are found by name.
        faults: always empty for a table.

    Raises:
        InputError: a column is missing, or there is no such place of images.
    """

    def __init__(self, table: Table, columns: ColumnNames, images: Path | None = None) -> None:
        self.name, self.table = str(table.path), table
        self.faults: tuple[Failure, ...] = ()
        self.image_column = columns.required(table, "image")
        self.text_column = columns.required(table, "text")
        if isinstance(table.reader, ParquetTable):
            for column in (self.image_column, self.text_column):
                if kind := table.reader.kind(column):
                    raise InputError(
                        f"{table.path}: the column {column!r} has no texts but "
                        f"{one_line(kind, 80)}. Images are named by their paths: those in the "
                        "table itself are not read"
                    )
        self.images = NamedImages(images or table.path.parent, table.path.parent)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table."""
        return self.table.columns

    def files(self, name: str) -> Iterator[str]:
        """Paths that are read and have a file name: the table's, and those of images."""
        yield self.name
        for pair in self.pairs():
            if pair.image.endswith(name) and self.images.are_files:
                yield str(self.images.place / pair.image)

    def rows(self) -> Iterator[TableRow]:
        """All rows in order, with all columns."""
        return self.table.rows()

    def shown(self, row: TableRow) -> tuple[str, str]:
        """The image's name and the text of a row, for people."""
        image, text = (row.values.get(it) for it in (self.image_column, self.text_column))
        return to_cell(image), to_cell(text)

    def pairs(self) -> Iterator[Pair]:
        """All rows in order.

        Raises:
            InputError: the table cannot be read, or has no rows.
        """
        row = None
        for row in self.table.rows([self.image_column, self.text_column]):
            yield self._pair(row)
        if row is None:
            raise InputError(f"{self.table.path} has no rows")

    def image(self, name: str) -> Scorable:
        """The image of a name, as for `NamedImages.find`."""
        return self.images.find(name)

    def state(self, name: str) -> object:
        """State of an image, as for `NamedImages.state`."""
        return self.images.state(name)

    def _pair(self, row: TableRow) -> Pair:
        try:
            return Pair(row.text(self.image_column, strip=False), row.text(self.text_column))
        except ValueError as error:
            return Pair("", "", str(error))
