"""Rows of Parquet files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_trt.errors import InputError, MissingExtraError, one_line
from dsd_trt.files.regular import open_regular
from dsd_trt.tables.delimited import distinct
from dsd_trt.tables.row import TableRow

BATCH = 1024  # rows that are in memory at a time


@dataclass(frozen=True, slots=True)
class ArrowValues(Mapping[str, object]):
    """Values of one row, converted to Python objects when they are asked for.

    Attributes:
        batch: Arrow record batch that has the row.
        at: place of the row in the batch.
    """

    batch: Any
    at: int

    def __getitem__(self, column: str) -> object:
        place = self.batch.schema.get_field_index(column)
        if place < 0:
            raise KeyError(column)
        scalar = self.batch.column(place)[self.at]
        try:
            return scalar.as_py()
        except ValueError:  # nanoseconds, or years, that Python's dates do not have
            return scalar.cast("string").as_py()

    def __contains__(self, column: object) -> bool:
        return column in self.batch.schema.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.batch.schema.names)

    def __len__(self) -> int:
        return int(self.batch.num_columns)


class ParquetTable:
    """A Parquet file; types stay those of the file.

    Args:
        path: path of the Parquet file.

    Attributes:
        columns: names of the columns, distinct: a second `x` is `x_2`.
        doubled: names that the file has more than once.

    Raises:
        MissingExtraError: the package that reads Parquet is not installed.
        InputError: the file is no whole Parquet file.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._opened() as file:
            names = list(file.schema_arrow.names)
            self.count: int = file.metadata.num_rows
        self.columns = distinct(names)
        self.doubled = frozenset(name for name in names if names.count(name) > 1)

    @property
    def schema(self) -> Any:
        """The Arrow schema of the rows' batches, with the file's metadata."""
        with self._opened() as file:
            return self._named(file.schema_arrow)

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
        import pyarrow

        columns = None if only is None or self.doubled else list(only)
        number = 0
        with self._opened() as file:
            for batch in file.iter_batches(BATCH, columns=columns):
                named = pyarrow.RecordBatch.from_arrays(
                    batch.columns, schema=self._named(batch.schema)
                )
                for at in range(named.num_rows):
                    number += 1
                    yield TableRow(f"row {number}", ArrowValues(named, at))

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
                f"{self._path} is a Parquet file, which needs a package that is not installed here "
                f"({error}). Install it with: pip install 'dsd-trt[index]'"
            ) from error
        with open_regular(self._path) as stream:
            try:
                with ParquetFile(stream) as file:
                    yield file
            except (ArrowException, OSError, OverflowError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise InputError(
                    f"{self._path} is no whole Parquet file: {one_line(error)}"
                ) from error
