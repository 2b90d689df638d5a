"""Options that name a data set; imports nothing heavy, so that help is fast."""

from __future__ import annotations

from pathlib import Path

import click

from dsd_trt.commands.options import Command
from dsd_trt.train.data.catalogue import NAMES


def data_options(command: Command) -> Command:
    """--data and --root, a data set and the folder of its files."""
    data = click.option(
        "--data",
        required=True,
        metavar="DATASET",
        help=f"Data set: {', '.join(NAMES)}; or a .csv or .jsonl file with columns "
        "image,text,label or image,text,negatives.",
    )
    root = click.option(
        "--root",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=".",
        help="Folder of the data set's files.  [default: current folder]",
    )
    return data(root(command))
