"""Options that name a data set; imports nothing heavy, so that help is fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from dsd_trt.commands.options import Command, Share, column_options, images_folder_option
from dsd_trt.train.data.catalogue import FEW_SHOT, NAMES


def data_options(command: Command) -> Command:
    """--data, --root, the table's columns and --images: a data set, and how it is read."""
    data = click.option(
        "--data",
        required=True,
        metavar="DATASET",
        help=f"Data set: {', '.join(NAMES)}; or a CSV, JSONL or Parquet file with columns "
        "image,text and, where there are any, label, negatives or negative_1, negative_2...; - for "
        "one on standard input.",
    )
    root = click.option(
        "--root",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=".",
        help="Folder of the data set's files.  [default: current folder]",
    )
    columns = column_options("image", "text", "label", "id")
    return data(root(columns(images_folder_option(command))))


def fraction_option(of: str, table: str, *, least: bool = False) -> Callable[[Command], Command]:
    """--fraction, whose default depends on the data set: None.

    Args:
        of: help text of the option.
        table: default of a table, for the help.
        least: whether 0 is refused.
    """
    return click.option(
        "--fraction",
        type=Share(0, 1, min_open=least),
        help=f"{of}  [default: {table} of a table, {FEW_SHOT} of a named data set]",
    )
