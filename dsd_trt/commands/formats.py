"""Output formats of scores by name; imports nothing heavy, so that help is fast."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from dsd_trt.commands.output import Record, write_output


@dataclass(frozen=True)
class Streamed:
    """A format of lines, appended to the output as scores arrive.

    Attributes:
        lines: function from records to their lines, one each, with the line break.
        header: first line of the output, with its line break; "" for none.
    """

    lines: Callable[[Iterable[Record]], Iterator[str]]
    header: str = ""


@dataclass(frozen=True)
class AtEnd:
    """A format that is written when all scores are known, whole or not at all.

    Attributes:
        write: function `(output, records, grid)` that writes to a path, or to standard output for
            "-". `grid` is whether the records are every image against every text.
        check: function of the output's path, called before the work; raises if nothing can be
            written.
        needs: requirements of the format, for the help; "" for none.
    """

    write: Callable[[str, Iterable[Record], bool], None]
    check: Callable[[str], None] = lambda output: None
    needs: str = ""


def _object(record: Record) -> str:
    return json.dumps(asdict(record), ensure_ascii=False)


def _json_lines(records: Iterable[Record]) -> Iterator[str]:
    return (f"{_object(record)}\n" for record in records)


def _csv_lines(records: Iterable[Record]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for record in records:
        writer.writerow((record.image, record.text, record.score, record.probability))
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _json_parts(records: Iterable[Record]) -> Iterator[str]:
    """One JSON list with one record per line, in parts."""
    empty = True
    for record in records:
        yield f"{'[' if empty else ','}\n  {_object(record)}"
        empty = False
    yield "[]\n" if empty else "\n]\n"


def _write_json(output: str, records: Iterable[Record], grid: bool) -> None:
    write_output(output, _json_parts(records))


def _write_table(output: str, records: Iterable[Record], grid: bool) -> None:
    from dsd_trt.commands.table import to_table

    width = shutil.get_terminal_size((100, 24)).columns if output == "-" else 100
    color = output == "-" and sys.stdout.isatty()
    write_output(output, [to_table(list(records), grid=grid, width=width, color=color)])


def _write_parquet(output: str, records: Iterable[Record], grid: bool) -> None:
    from dsd_trt.commands.parquet import write_parquet

    write_parquet(output, records)


def _check_parquet(output: str) -> None:
    from dsd_trt.commands.parquet import require_parquet

    require_parquet(output)


FORMATS: Mapping[str, Streamed | AtEnd] = {
    "table": AtEnd(_write_table),
    "json": AtEnd(_write_json),
    "jsonl": Streamed(_json_lines),
    "csv": Streamed(_csv_lines, header="image,text,score,probability\n"),
    "parquet": AtEnd(_write_parquet, _check_parquet, needs="-o FILE and the extra index"),
}


def formats_help() -> str:
    """Help text of --format: formats that grow, and those that have requirements."""
    streamed = [name for name, it in FORMATS.items() if isinstance(it, Streamed)]
    needs = [
        f"{name} needs {it.needs}."
        for name, it in FORMATS.items()
        if isinstance(it, AtEnd) and it.needs
    ]
    grow = f"{', '.join(streamed)} grow line by line, others are written at the end."
    return " ".join(("Output format.", grow, *needs))
