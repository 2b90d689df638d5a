"""Scores as a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dsd_trt.commands.output import Record
from dsd_trt.errors import InputError, MissingExtraError
from dsd_trt.files.whole import whole
from dsd_trt.installation import install_command

ROWS = 1 << 16  # of a row group: what is in memory at once
_CHARACTERS = 1 << 24  # of a row group: texts may be long


def require_parquet(output: str) -> None:
    """Check before the work that Parquet can be written.

    Raises:
        InputError: the output is standard output.
        MissingExtraError: the package that writes Parquet is not installed.
    """
    if output == "-":
        raise InputError("Parquet is binary: name a file to write, -o FILE.parquet")
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"-f parquet needs a package that is not installed here ({error}). "
            f"Install it with: {install_command('index')}"
        ) from error


def write_parquet(output: str, records: Iterable[Record]) -> None:
    """Write records atomically; the same records give the same bytes.

    Args:
        output: path of the file to write.
        records: rows to write; one row group at a time is held in memory.

    Raises:
        DsdError: the disk is full or cannot be written to; an existing file is unchanged.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    number = pyarrow.float32()
    kinds = (pyarrow.string(), pyarrow.string(), number, number)
    names = ("image", "text", "score", "probability")
    schema = pyarrow.schema(list(zip(names, kinds, strict=True)))
    with whole(Path(output)) as file, ParquetWriter(file, schema) as writer:
        for rows in _row_groups(records):
            columns = zip(*rows, strict=True)
            arrays = [pyarrow.array(it, kind) for it, kind in zip(columns, kinds, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _row_groups(records: Iterable[Record]) -> Iterator[list[tuple[Any, ...]]]:
    rows: list[tuple[Any, ...]] = []
    characters = 0
    for record in records:
        rows.append((record.image, record.text, record.score, record.probability))
        characters += len(record.image) + len(record.text)
        if len(rows) == ROWS or characters > _CHARACTERS:
            yield rows
            rows, characters = [], 0
    if rows:
        yield rows
