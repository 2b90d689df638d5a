"""Pairs named on the command line, and what commands say about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsd_trt.commands.log import note, say
from dsd_trt.commands.output import refuse_input, refuse_unwritable
from dsd_trt.errors import cut
from dsd_trt.pairs.source import PairSource
from dsd_trt.pairs.survey import PairSurvey
from dsd_trt.pairs.table import TablePairs
from dsd_trt.pairs.webdataset import WebDatasetPairs
from dsd_trt.tables.columns import ColumnNames, swapped, swapping
from dsd_trt.tables.table import Table

if TYPE_CHECKING:
    from dsd_trt.commands.layout import Layout
    from dsd_trt.commands.records import PairRecords


def open_pairs(
    path: Path,
    table: Table | None,
    columns: ColumnNames,
    images: Path | None,
    text_field: str | None,
) -> PairSource:
    """Pairs of a table that `open_table` opened, or of a WebDataset.

    Args:
        path: path of the WebDataset, a tar file or a folder of tar files.
        table: the table; None for a WebDataset.
        columns: names of the table's columns.
        images: where the table's images are, as for `NamedImages`.
        text_field: field of the samples' `.json` that has the text.

    Raises:
        InputError: there are no pairs, or no such place of images.
    """
    if table is None:
        return WebDatasetPairs(path, text_field)
    return TablePairs(table, columns, images)


def refuse_output(output: str, source: PairSource) -> None:
    """Check before the work that an output can be written and is not read.

    Raises:
        InputError: it cannot be written, or is one of the files that are read.
    """
    refuse_unwritable(output)
    if output != "-" and Path(output).is_file():
        refuse_input(output, source.files({Path(output).resolve().name}))


def surveyed(source: PairSource) -> PairSurvey:
    """Read all pairs once, and say what is not as it seems to be meant.

    Raises:
        InputError: the source cannot be read, or has no pairs.
    """
    survey = PairSurvey.of(source)
    if survey.absent and survey.absent == survey.images:
        say(
            f"warning: none of the images of {source.name} is there, such as "
            f"{cut(survey.example)!r}. "
            f"{_remedy(survey)}"
        )
    return survey


def _remedy(survey: PairSurvey) -> str:
    """What may be done about a table none of whose images is there."""
    source, first = survey.source, int((survey.image_of >= 0).argmax())
    if isinstance(source, TablePairs) and swapped(*survey.pair(first)):
        return f"Are the columns swapped? {swapping(source.image_column, source.text_column)}"
    if isinstance(source, TablePairs) and source.images.place != source.table.folder:
        return "Their paths are relative to --images, without it to the table's folder"
    return "Their paths are relative to the table's folder; --images names another place"


def report_renamed(layout: Layout, source: PairSource) -> None:
    """Say which columns of the input are passed on under another name."""
    for name, to in layout.renamed.items():
        note(f"the column {name!r} of {source.name} is passed on as {to!r}")


def report_failed_rows(records: PairRecords) -> bool:
    """List rows and tar files that could not be read or scored; True if there are any."""
    run, faults = records.run, records.run.survey.source.faults
    if run.failed:
        say(f"rows that could not be scored: {run.failed} of {run.survey.count}")
        for failure in records.errors:
            say(f"  {failure}")
        if (more := run.failed - len(records.errors)) > 0:
            say(f"  and {more} more: see the column error")
    for failure in faults:
        say(f"could not be read to its end: {failure}")
    return bool(run.failed or faults)
