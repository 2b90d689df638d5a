"""Output formats of scores by name; imports nothing heavy, so that help is fast."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from dsd_trt.commands.layout import Layout
from dsd_trt.commands.origin import Origin
from dsd_trt.commands.output import Record, write_output
from dsd_trt.errors import InputError
from dsd_trt.tables.values import to_cell, to_json


@dataclass(frozen=True)
class Streamed:
    """A format of lines, appended to the output as scores arrive.

    Attributes:
        lines: function `(records, layout)` to the records' lines, one each, with the line break.
        header: function of the layout to the first line of the output, with its line break; "" for
            none.
    """

    lines: Callable[[Iterable[Record], Layout], Iterator[str]]
    header: Callable[[Layout], str] = lambda layout: ""


@dataclass(frozen=True)
class AtEnd:
    """A format that is written when all scores are known, whole or not at all.

    Attributes:
        write: function `(output, records, origin)` that writes to a path, or to standard output
            for "-".
        check: function of the output's path, called before the work; raises if nothing can be
            written.
        needs: requirements of the format, for the help; "" for none.
    """

    write: Callable[[str, Iterable[Record], Origin], None]
    check: Callable[[str], None] = lambda output: None
    needs: str = ""


def _object(record: Record, layout: Layout) -> str:
    values = {name: to_json(value) for name, value in layout.values(record).items()}
    return json.dumps(values, ensure_ascii=False)


def _json_lines(records: Iterable[Record], layout: Layout) -> Iterator[str]:
    return (f"{_object(record, layout)}\n" for record in records)


def _csv_line(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _csv_lines(records: Iterable[Record], layout: Layout) -> Iterator[str]:
    for record in records:
        values = layout.values(record)
        yield _csv_line(to_cell(values.get(column)) for column in layout.columns)


def _json_parts(records: Iterable[Record], layout: Layout) -> Iterator[str]:
    """One JSON list with one record per line, in parts."""
    empty = True
    for record in records:
        yield f"{'[' if empty else ','}\n  {_object(record, layout)}"
        empty = False
    yield "[]\n" if empty else "\n]\n"


def _write_json(output: str, records: Iterable[Record], origin: Origin) -> None:
    write_output(output, _json_parts(records, origin.layout))


def _write_table(output: str, records: Iterable[Record], origin: Origin) -> None:
    from dsd_trt.commands.table import to_table

    width = shutil.get_terminal_size((100, 24)).columns if output == "-" else 100
    color = output == "-" and sys.stdout.isatty()
    write_output(output, [to_table(list(records), grid=origin.grid, width=width, color=color)])


def _write_parquet(output: str, records: Iterable[Record], origin: Origin) -> None:
    from dsd_trt.commands.parquet import write_parquet

    write_parquet(output, records, origin)


def _check_parquet(output: str) -> None:
    from dsd_trt.commands.parquet import require_parquet

    require_parquet(output)


def _write_html(output: str, records: Iterable[Record], origin: Origin) -> None:
    from dsd_trt.commands.html import write_html

    write_html(output, records, origin)


def _check_html(output: str) -> None:
    from dsd_trt.commands.html import refuse_terminal

    refuse_terminal(output)


FORMATS: Mapping[str, Streamed | AtEnd] = {
    "table": AtEnd(_write_table),
    "json": AtEnd(_write_json),
    "jsonl": Streamed(_json_lines),
    "csv": Streamed(_csv_lines, header=lambda layout: _csv_line(layout.columns)),
    "parquet": AtEnd(_write_parquet, _check_parquet, needs="-o FILE and the extra index"),
    "html": AtEnd(_write_html, _check_html),
}


_SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".html": "html",
    ".htm": "html",
}


_UNWRITTEN = frozenset(
    {
        *(".tsv", ".xlsx", ".xls", ".ods", ".feather", ".arrow", ".avro", ".orc", ".pkl", ".h5"),
        *(".gz", ".zst", ".bz2", ".xz", ".zip", ".npy", ".npz", ".xml", ".yaml", ".db"),
    }
)


def format_of(output: str, default: str) -> str:
    """Name of the format that the suffix of an output says, else the default.

    Raises:
        InputError: it is the suffix of a format that is not written.
    """
    suffix = PurePath(output).suffix.lower()
    if suffix in _UNWRITTEN:
        raise InputError(
            f"{output}: {suffix} is not written; name a file FILE.csv, .jsonl, .json, .parquet or "
            ".html, or the format with -f"
        )
    return _SUFFIXES.get(suffix, default)


def formats_help() -> str:
    """Help text of --format: formats that grow, and those that have requirements."""
    streamed = [name for name, it in FORMATS.items() if isinstance(it, Streamed)]
    needs = [
        f"{name} needs {it.needs}."
        for name, it in FORMATS.items()
        if isinstance(it, AtEnd) and it.needs
    ]
    grow = f"{', '.join(streamed)} grow line by line, others are written at the end."
    default = "[default: by the suffix of -o, else table]"
    return " ".join(("Output format.", grow, *needs, f" {default}"))
