"""Pairs of a table."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from dsd_trt.errors import InputError, one_line
from dsd_trt.jobs import Scorable
from dsd_trt.pairs.images import NamedImages
from dsd_trt.pairs.source import Pair
from dsd_trt.results import Failure
from dsd_trt.tables.columns import ColumnNames
from dsd_trt.tables.embedded import EmbeddedImage, ImageColumn
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
        name: name of the table.
        table: table with a pair per row.
        embedded: column whose values are the images themselves; None if images are named.
        image_column: column with an image per row, named or embedded.
        text_column: column with what is scored with each image.
        images: where images are found by name.
        faults: always empty for a table.

    Raises:
        InputError: a column is missing, or there is no such place of images.
    """

    def __init__(self, table: Table, columns: ColumnNames, images: Path | None = None) -> None:
        self.name: str = table.name
        self.table: Table = table
        self.faults: tuple[Failure, ...] = ()
        self.image_column: str = columns.required(table, "image")
        self.text_column: str = columns.required(table, "text")
        column = self.text_column
        if isinstance(table.reader, ParquetTable) and (kind := table.reader.kind(column)):
            raise InputError(
                f"{table.name}: the column {column!r} has no texts but {one_line(kind, 80)}. Name "
                "the texts' column: --text-column NAME"
            )
        self._image = ImageColumn(table, self.image_column)
        self._stored: dict[str, EmbeddedImage] = {}  # first image of each content, by its name
        self.embedded: str | None = self.image_column if self._image.embedded else None
        self.images: NamedImages = NamedImages(images or table.folder, table.folder)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table."""
        return self.table.columns

    def files(self, names: Collection[str] | None = None) -> Iterator[str]:
        """Paths that are read: the table's, and those of images and of tar files with some names.

        Args:
            names: file names of images and tar files; None is all, images in tar files included.
        """
        yield self.name
        if not self.images.are_files:
            return
        yield str(self.images.place)
        for row in self.table.rows([self.image_column]):
            if not (path := self._image.path(row)):
                continue
            parts = path.replace(os.sep, "/").split("/")
            if names is None or parts[-1] in names:
                yield str(self.images.place / path)
            elif tars := [n for n, part in enumerate(parts) if part in names]:
                yield str(self.images.place.joinpath(*parts[: tars[0] + 1]))

    def rows(self) -> Iterator[TableRow]:
        """All rows in order, with all columns."""
        return self.table.rows()

    def shown(self, row: TableRow) -> tuple[str, str]:
        """The image's name and the text of a row, for people."""
        return to_cell(self._image.shown(row)), to_cell(row.values.get(self.text_column))

    def pairs(self) -> Iterator[Pair]:
        """All rows in order.

        Raises:
            InputError: the table cannot be read, or has no rows.
        """
        row = None
        for row in self.table.rows([self.image_column, self.text_column]):
            yield self._pair(row)
        if row is None:
            raise InputError(f"{self.name} has no rows")

    def image(self, name: str) -> Scorable:
        """The image of a name, as for `NamedImages.find`, or the one that is stored."""
        if (stored := self._stored.get(name)) is not None:
            return stored
        return self.images.find(name)

    def state(self, name: str) -> object:
        """State of an image, as for `NamedImages.state`; a stored one has its content's name."""
        if name in self._stored:
            return None
        return self.images.state(name)

    def _pair(self, row: TableRow) -> Pair:
        try:
            image, text = self._image.of(row), row.text(self.text_column)
            if isinstance(image, EmbeddedImage):
                name = f"\0{image.digest.hex()}"  # no path has NUL
                self._stored.setdefault(name, image)
                image = name
            return Pair(image, text)
        except ValueError as error:
            return Pair("", "", str(error))
