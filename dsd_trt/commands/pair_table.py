"""The table of pairs that a command is given; imports nothing heavy, so that mistakes are quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsd_trt.errors import InputError
from dsd_trt.index.tar_names import is_tar

if TYPE_CHECKING:
    from dsd_trt.tables.columns import ColumnNames, Role
    from dsd_trt.tables.table import Table

_ROLES: tuple[Role, ...] = ("image", "text", "label")


def open_table(
    path: Path, columns: ColumnNames, images: Path | None, text_field: str | None
) -> Table | None:
    """Open a table of pairs and find its columns; None for a WebDataset.

    Args:
        path: a table, "-" for one on standard input; a tar file; or a folder of tar files.
        columns: names of the table's columns.
        images: where the table's images are, as for `NamedImages`.
        text_field: field of the samples' `.json` that has the text.

    Raises:
        InputError: it is no table, a column is missing, or an option does not fit.
    """
    if path.is_dir() or is_tar(path):
        if columns.image or columns.text or images is not None:
            raise InputError(
                f"{path} is a WebDataset, whose samples have their own images: leave out "
                "--image-column, --text-column and --images; --text-field names their text"
            )
        return None
    if text_field is not None:
        raise InputError(
            f"--text-field is for WebDatasets, and {path} is a table: --text-column names its texts"
        )
    from dsd_trt.tables.table import Table

    table = Table.open(path)
    columns.required(table, "image")
    columns.required(table, "text")
    return table


def open_labels(path: Path, columns: ColumnNames) -> Table:
    """Open a table of labelled pairs, and find its columns.

    Raises:
        InputError: it is no table, or a column is missing.
    """
    from dsd_trt.tables.table import Table

    table = Table.open(path)
    for role in _ROLES:
        columns.required(table, role)
    return table
