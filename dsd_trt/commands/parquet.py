"""Scores as a Parquet file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_trt.commands.layout import NUMBERS, WORDS
from dsd_trt.commands.origin import Origin
from dsd_trt.commands.output import Record
from dsd_trt.errors import InputError, MissingExtraError
from dsd_trt.files.whole import whole
from dsd_trt.installation import install_command
from dsd_trt.tables.parquet import ArrowValues, ParquetTable
from dsd_trt.tables.table import Table
from dsd_trt.tables.values import encodable, to_cell

METADATA = b"dsd-trt"
"""Key of the file's metadata that has what scores depend on, as a JSON object of texts."""
ROWS = 1 << 16  # of a row group: what is in memory at once
_BYTES = 1 << 24  # of a row group: texts may be long
_SURVEYED = 8192  # rows of JSONL whose types are inferred at a time


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


def write_parquet(output: str, records: Iterable[Record], origin: Origin | None = None) -> None:
    """Write records atomically; the same records give the same bytes.

    Columns of a Parquet table keep their types, those of JSONL get the types of their values, and
    those of CSV are strings. What the scores depend on is in the file's metadata, as JSON.

    Args:
        output: path of the file to write.
        records: rows to write; one row group at a time is held in memory.
        origin: what the records come from, with the columns of the file; None is scores of images
            and texts, of which nothing else is known.

    Raises:
        DsdError: the disk is full or cannot be written to; an existing file is unchanged.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    origin = origin or Origin()
    layout = origin.layout
    passed = _passed(layout.table, layout.names)
    kinds = [_kind(name) for name in layout.added]
    fields = [it.field for it in passed]
    fields += [pyarrow.field(*it) for it in zip(layout.added, kinds, strict=True)]
    schema = pyarrow.schema(fields, _metadata(layout.table, origin.facts()))
    with whole(Path(output)) as file, ParquetWriter(file, schema) as writer:
        for rows in _row_groups(records):
            arrays = [_arrays(it, passed) for it in _blocks(rows)]
            columns: list[Any] = [
                pyarrow.chunked_array([it[place] for it in arrays], column.field.type)
                for place, column in enumerate(passed)
            ]
            columns += [
                pyarrow.array([_added(getattr(it, name)) for it in rows], kind)
                for name, kind in zip(layout.added, kinds, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


@dataclass(frozen=True)
class _Column:
    """A column that is passed on.

    Attributes:
        name: its name in the table.
        field: its Arrow field in the output.
        as_json: whether its values, which have no common type, are written as JSON texts.
    """

    name: str
    field: Any
    as_json: bool = False


def _passed(table: Table | None, names: dict[str, str]) -> list[_Column]:
    import pyarrow

    if table is not None and isinstance(table.reader, ParquetTable):
        schema = table.reader.schema
        return [_Column(name, schema.field(name).with_name(to)) for name, to in names.items()]
    if table is None or table.form == "csv":
        return [_Column(name, pyarrow.field(to, pyarrow.string())) for name, to in names.items()]
    kinds = _inferred(table, list(names))
    return [
        _Column(name, pyarrow.field(to, kinds[name] or pyarrow.string()), kinds[name] is None)
        for name, to in names.items()
    ]


def _metadata(table: Table | None, facts: Mapping[str, str]) -> dict[bytes, bytes] | None:
    """Metadata of the table that is passed on, and what the scores depend on."""
    reader = table.reader if table is not None else None
    own = dict(reader.schema.metadata or {}) if isinstance(reader, ParquetTable) else {}
    if facts:
        own[METADATA] = json.dumps(facts, ensure_ascii=False).encode()
    return own or None


def _inferred(table: Table, names: Sequence[str]) -> dict[str, Any]:
    """Type of each column's values in all rows; None if they have none in common."""
    import pyarrow

    found: dict[str, Any] = dict.fromkeys(names, pyarrow.null())
    rows = table.rows()
    while block := list(itertools.islice(rows, _SURVEYED)):
        for name in names:
            if found[name] is None:
                continue
            try:
                kind = pyarrow.array([_plain(row.values.get(name)) for row in block]).type
                both = [pyarrow.schema([("x", it)]) for it in (found[name], kind)]
                unified = pyarrow.unify_schemas(both, promote_options="permissive")
                found[name] = unified.field("x").type
            except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
                found[name] = None
    return {name: None if it is None or _is_odd(it) else it for name, it in found.items()}


def _is_odd(kind: Any) -> bool:
    """Whether a type is that of no value, or has no place in Parquet: a struct without fields."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return kind.num_fields == 0 or any(_is_odd(it.type) for it in kind)
    if pyarrow.types.is_list(kind):
        return _is_odd(kind.value_type)
    return bool(pyarrow.types.is_null(kind))


def _plain(value: object) -> object:
    """A JSON value whose texts UTF-8 has."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _blocks(rows: Sequence[Record]) -> Iterator[list[Record]]:
    """Consecutive records of the same Arrow batch, or of none."""

    def batch(record: Record) -> int:
        values = record.row.values if record.row is not None else None
        return id(values.batch) if isinstance(values, ArrowValues) else 0

    for _, block in itertools.groupby(rows, batch):
        yield list(block)


def _arrays(block: Sequence[Record], passed: Sequence[_Column]) -> list[Any]:
    """Columns that are passed on, for one block of records."""
    import pyarrow

    rows = [it.row for it in block if it.row is not None]
    if rows and isinstance(first := rows[0].values, ArrowValues):
        at = [it.values.at for it in rows if isinstance(it.values, ArrowValues)]
        taken = first.batch.take(pyarrow.array(at, pyarrow.int64()))
        return [taken.column(it.name) for it in passed]
    arrays = []
    for column in passed:
        values = [it.values.get(column.name) for it in rows]
        if column.as_json:
            cells: list[object] = [None if it is None else to_cell(it) for it in values]
        else:
            cells = [_plain(it) for it in values]
        arrays.append(pyarrow.array(cells, column.field.type))
    return arrays


def _kind(name: str) -> Any:
    """Arrow type of an added column."""
    import pyarrow

    if name in NUMBERS:
        return pyarrow.float32()
    if name != WORDS:
        return pyarrow.string()
    score = ("score", pyarrow.float32())
    tokens = pyarrow.list_(pyarrow.struct([("token", pyarrow.string()), score]))
    return pyarrow.list_(pyarrow.struct([("word", pyarrow.string()), score, ("tokens", tokens)]))


def _added(value: object) -> object:
    """A value of an added column, null for NaN."""
    if isinstance(value, tuple):
        return [word.to_plain() for word in value]
    return None if value != value else value


def _row_groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    rows: list[Record] = []
    size, batch = 0, None
    for record in records:
        rows.append(record)
        values = record.row.values if record.row is not None else {}
        if isinstance(values, ArrowValues):
            if values.batch is not batch:
                batch = values.batch
                size += batch.nbytes
        else:
            size += len(record.image) + len(record.text)
            size += sum(len(it) for it in values.values() if isinstance(it, str))
        if len(rows) == ROWS or size > _BYTES:
            yield rows
            rows, size, batch = [], 0, None
    if rows:
        yield rows
