"""The images of a table's rows, each looked at once."""

from __future__ import annotations

import stat
from pathlib import Path

from dsd_trt.image.missing import no_image
from dsd_trt.tables.embedded import EmbeddedImage, ImageColumn
from dsd_trt.tables.row import TableRow
from dsd_trt.tables.table import Table


class RowImages:
    """Files that a table's rows name, or images that are stored in them.

    Args:
        table: table with an image per row; paths are relative to its folder.
        column: name of the column of images.

    Raises:
        InputError: the column has neither paths nor images.
    """

    def __init__(self, table: Table, column: str) -> None:
        self._column, self._folder = ImageColumn(table, column), table.folder
        self._stored: dict[EmbeddedImage, EmbeddedImage] = {}
        self._faults: dict[str, str | None] = {}  # by path as the table has it

    def of(self, row: TableRow) -> tuple[str, Path | EmbeddedImage]:
        """The image of a row, and its name: a file's path in the table, or a stored image's hash.

        Stored images that are equal are the same object.

        Raises:
            ValueError: the row is malformed, or its file is none; the message has the remedy.
        """
        found = self._column.of(row, strip=True)
        if isinstance(found, EmbeddedImage):
            return found.digest.hex(), self._stored.setdefault(found, found)
        if found not in self._faults:
            self._faults[found] = _fault(self._folder, found)
        if fault := self._faults[found]:
            raise ValueError(fault)
        return found, self._folder / found


def _fault(folder: Path, name: str) -> str | None:
    """Why an image that a table names is no file, with the remedy; None if it is one.

    Args:
        folder: folder that the name is relative to.
        name: path as it is written in the table.
    """
    try:
        mode = (folder / name).stat().st_mode
    except (OSError, ValueError):  # missing, or not a valid name
        return no_image(folder, name)
    return None if stat.S_ISREG(mode) else f"{str(folder / name)[:300]!r} is no file"
