"""Rows of JSONL files; a malformed row never costs the others."""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path

from dsd_trt.files.schema import parse_json
from dsd_trt.tables.row import TableRow
from dsd_trt.tables.text_file import text_lines


class JsonLinesTable:
    """A file with a JSON object per line. Blank lines are no rows.

    Args:
        path: path of the JSONL file.

    Attributes:
        doubled: always empty: an object that has a key twice is malformed.
    """

    doubled: frozenset[str] = frozenset()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: tuple[str, ...] | None = None  # known once all rows were read

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of all rows, in order of first appearance; reads the whole file the first time."""
        if self._columns is None:
            for _ in self.rows():
                pass
        return self._columns or ()

    def rows(self, only: object = None) -> Iterator[TableRow]:
        """Rows in order; `only` has no use, as a line is always read whole."""
        keys = dict[str, None]()
        for line, content in enumerate(text_lines(self._path, None), start=1):
            if not content.strip():
                continue
            try:
                value = parse_json(content.strip())
            except ValueError as error:
                reason = str(error)
                if isinstance(error, JSONDecodeError):  # it counts lines as well
                    reason = f"{error.msg} at character {error.pos + 1}"
                yield TableRow(f"line {line}", {}, f"not valid JSON: {reason}")
                continue
            if isinstance(value, dict):
                keys |= dict.fromkeys(value)
                yield TableRow(f"line {line}", value)
            else:
                yield TableRow(f"line {line}", {}, "not a JSON object")
        self._columns = tuple(keys)
