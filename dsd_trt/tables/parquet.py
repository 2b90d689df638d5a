"""Rows of Parquet files."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsd_trt.errors import InputError, MissingExtraError, one_line
from dsd_trt.tables.content import TableContent
from dsd_trt.tables.delimited import distinct
from dsd_trt.tables.row import TableRow

BATCH = 1024  # rows that are in memory at a time, at most
_BYTES = 1 << 24  # of these rows
_BUFFER = 1 << 20  # bytes that are read of a column at a time


@dataclass(frozen=True, slots=True)
class ArrowValues(Mapping[str, object]):
    """Values of one row, converted to Python objects when they are asked for.

    Attributes:
        batch: Arrow record batch that has the row.
        at: place of the row in the batch.
        number: number of the row in the file, from 0.
    """

    batch: Any
    at: int
    number: int

    def __getitem__(self, column: str) -> object:
        place = self.batch.schema.get_field_index(column)
        if place < 0:
            raise KeyError(column)
        scalar = self.batch.column(place)[self.at]
        try:
            return scalar.as_py()
        except ValueError:  # nanoseconds, or years, that Python's dates do not have
            return scalar.cast("string").as_py()

    def alone(self) -> ArrowValues:
        """The same values, without the batch's other rows in memory."""
        import pyarrow

        return ArrowValues(self.batch.take(pyarrow.array([self.at])), 0, self.number)

    def __contains__(self, column: object) -> bool:
        return column in self.batch.schema.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.batch.schema.names)

    def __len__(self) -> int:
        return int(self.batch.num_columns)


class ParquetTable:
    """A Parquet file; types stay those of the file.

    Args:
        content: content of the Parquet file.

    Attributes:
        name: name of the file, for messages.
        columns: names of the columns, distinct: a second `x` is `x_2`.
        doubled: names that the file has more than once.

    Raises:
        MissingExtraError: the package that reads Parquet is not installed.
        InputError: the file is no whole Parquet file.
        OSError: the file cannot be read.
    """

    def __init__(self, content: TableContent) -> None:
        self.name: str = content.name
        self._content = content
        with self._opened() as file:
            names = list(file.schema_arrow.names)
            self.count: int = file.metadata.num_rows
            self._groups = [0]  # number of the first row of each row group, and of the rows
            for group in range(file.num_row_groups):
                rows: int = file.metadata.row_group(group).num_rows
                self._groups.append(self._groups[-1] + rows)
        self.columns: tuple[str, ...] = distinct(names)
        self.doubled: frozenset[str] = frozenset(name for name in names if names.count(name) > 1)

    @property
    def schema(self) -> Any:
        """The Arrow schema of the rows' batches, with the file's metadata."""
        with self._opened() as file:
            return self._named(file.schema_arrow)

    def holds_bytes(self, column: str) -> bool:
        """Whether a column has binary values, or structs with a binary field `bytes`."""
        from pyarrow import types

        kind = self.schema.field(column).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_struct(kind):
            place = kind.get_field_index("bytes")
            if place < 0:
                return False
            kind = kind.field(place).type
        names = ("is_binary", "is_large_binary", "is_binary_view", "is_fixed_size_binary")
        tests = [test for name in names if (test := getattr(types, name, None))]
        return any(test(kind) for test in tests)

    def kind(self, column: str) -> str:
        """Name of a column's type if it cannot hold texts; "" if it can."""
        from pyarrow import types

        kind = self.schema.field(column).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        names = ("is_string", "is_large_string", "is_string_view", "is_null")
        tests = [test for name in names if (test := getattr(types, name, None))]
        return "" if any(test(kind) for test in tests) else str(kind)

    def rows(self, only: Sequence[str] | None = None) -> Iterator[TableRow]:
        """Rows in order.

        Args:
            only: columns to read; None is all.
        """
        for start, batch in self.batches(only):
            for at in range(batch.num_rows):
                number = start + at
                yield TableRow(f"row {number + 1}", ArrowValues(batch, at, number))

    def batches(self, only: Sequence[str] | None = None, row: int = 0) -> Iterator[tuple[int, Any]]:
        """Arrow record batches in order, each with the number of its first row.

        A batch has at most `BATCH` rows, and as few as fit in some megabytes where rows are large.

        Args:
            only: columns to read; None is all.
            row: row that is in the first row group to read.
        """
        import pyarrow

        columns = None if only is None or self.doubled else list(only)
        first = self._group_of(row)
        start = self._groups[first]
        with self._opened() as file:
            groups = range(first, file.num_row_groups)
            size = _rows_at_once(file.metadata, columns)
            for batch in file.iter_batches(size, row_groups=groups, columns=columns):
                yield (
                    start,
                    pyarrow.RecordBatch.from_arrays(
                        batch.columns, schema=self._named(batch.schema)
                    ),
                )
                start += batch.num_rows

    def end_of_group(self, row: int) -> int:
        """Number of the first row after the row group that has a row; 0 for row -1."""
        return 0 if row < 0 else self._groups[min(self._group_of(row) + 1, len(self._groups) - 1)]

    def _group_of(self, row: int) -> int:
        return max(0, bisect.bisect_right(self._groups, row) - 1)

    def _named(self, schema: Any) -> Any:
        import pyarrow

        names = distinct(schema.names)
        fields = [it.with_name(name) for it, name in zip(schema, names, strict=True)]
        return pyarrow.schema(fields, schema.metadata)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            from pyarrow.lib import ArrowException
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{self.name} is a Parquet file, which needs a package that is not installed here "
                f"({error}). Install it with: pip install 'dsd-trt[index]'"
            ) from error
        with self._content.open() as stream:
            try:
                with ParquetFile(stream, buffer_size=_BUFFER) as file:
                    yield file
            except (ArrowException, OSError, OverflowError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise InputError(
                    f"{self.name} is no whole Parquet file: {one_line(error)}"
                ) from error


def _rows_at_once(metadata: Any, columns: Sequence[str] | None) -> int:
    """Number of rows to read at a time, so that none of the columns takes too much memory."""
    largest = 1.0  # bytes of a row, as a mean over its row group
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = 0
        for place in range(group.num_columns):
            column = group.column(place)
            name: str = column.path_in_schema
            if columns is None or any(name == it or name.startswith(f"{it}.") for it in columns):
                size += column.total_uncompressed_size
        largest = max(largest, size / max(group.num_rows, 1))
    return max(1, min(BATCH, int(_BYTES / largest)))
