"""Rows of JSONL files; a malformed row never costs the others."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from json import JSONDecodeError

from dsd_trt.errors import InputError
from dsd_trt.files.schema import parse_json
from dsd_trt.tables.content import TableContent
from dsd_trt.tables.row import TableRow
from dsd_trt.tables.text_file import text_lines

_FIRST = 1000  # rows whose keys a message lists
_CHUNK = 1 << 20
_ESCAPED = re.compile(rb"\\u00[0-7]|\\/")  # another way to write a character of ASCII


class JsonLinesTable:
    """A file with a JSON object per line. Blank lines are no rows.

    Args:
        content: content of the JSONL file.

    Attributes:
        doubled: always empty: an object that has a key twice is malformed.
    """

    doubled: frozenset[str] = frozenset()

    def __init__(self, content: TableContent) -> None:
        self._content = content
        self._columns: tuple[str, ...] | None = None  # known once all rows were read

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of all rows, in order of first appearance; reads the whole file the first time."""
        if self._columns is None:
            for _ in self.rows():
                pass
        return self._columns or ()

    @property
    def first_columns(self) -> tuple[str, ...]:
        """Keys of the first rows, in order of first appearance."""
        if self._columns is not None:
            return self._columns
        first = itertools.islice(self.rows(), _FIRST)
        return tuple(dict.fromkeys(key for row in first for key in row.values))

    def may_have(self, start: str) -> bool:
        """Whether a row may have a key that begins so; reads bytes, which is far quicker than rows.

        Args:
            start: begin of the key, as JSON writes it.
        """
        if not start.isascii():
            return True  # there are several ways to write it
        quoted, before = f'"{start}'.encode(), b""
        with self._content.open() as file:
            while chunk := file.read(_CHUNK):
                both = before + chunk
                if quoted in both or _ESCAPED.search(both):
                    return True
                before = both[-len(quoted) - 6 :]
        return False

    def rows(self, only: object = None) -> Iterator[TableRow]:
        """Rows in order; `only` has no use, as a line is always read whole.

        Raises:
            InputError: the file is one object of columns, or of rows by their number.
        """
        keys = dict[str, None]()
        for line, content in enumerate(text_lines(self._content, None), start=1):
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
                if not keys and _is_of_columns(value):
                    raise InputError(
                        f"{self._content.name} is one JSON object of objects, as pandas writes by "
                        "default; write a row per line: "
                        "to_json(PATH, orient='records', lines=True)"
                    )
                if not keys and (name := _list_of_rows(value)):
                    raise InputError(
                        f"{self._content.name} is one JSON object with lists, and a table has an "
                        f"object per row; write those of a list on a line each: jq -c '.{name}[]'"
                    )
                keys |= dict.fromkeys(value)
                yield TableRow(f"line {line}", value)
            else:
                yield TableRow(f"line {line}", {}, "not a JSON object")
        self._columns = tuple(keys)


def _is_of_columns(value: Mapping[str, object]) -> bool:
    """Whether an object has nothing but objects with the same keys: it is a table, not a row."""
    inner = [it for it in value.values() if isinstance(it, dict)]
    return len(inner) == len(value) > 1 and all(it and it.keys() == inner[0].keys() for it in inner)


def _list_of_rows(value: Mapping[str, object]) -> str:
    """Name of the first list of objects, in an object that has neither texts nor paths."""
    if any(isinstance(it, str) for it in value.values()):
        return ""
    lists = (name for name, it in value.items() if isinstance(it, list) and it)
    return next((name for name in lists if _are_objects(value[name])), "")


def _are_objects(items: object) -> bool:
    return isinstance(items, list) and all(isinstance(it, dict) for it in items)
