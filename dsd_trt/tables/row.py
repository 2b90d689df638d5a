"""One row of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dsd_trt.files.rows import text_fault


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table, also if it is malformed.

    Attributes:
        place: the row's place in the file, for messages: "line 3", or "row 2" of Parquet.
        values: values by column: strings in CSV, JSON values in JSONL, Python objects in Parquet.
            A malformed row has what could be read of it.
        error: the reason why the row is malformed; None if it is sound.
    """

    place: str
    values: Mapping[str, object]
    error: str | None = None

    def text(self, column: str, *, strip: bool = True) -> str:
        """The text in a column.

        Args:
            column: column as the table names it.
            strip: whether to remove surrounding spaces.

        Raises:
            ValueError: the row is malformed, or the column has no text that can be used; the
                message names the column.
        """
        if self.error is not None:
            raise ValueError(self.error)
        value = self.values.get(column)
        if is_missing(value):
            raise ValueError(f"{column} is empty")
        if not isinstance(value, str):
            several = "; write a row for each of its texts" if isinstance(value, list) else ""
            raise ValueError(f"{column} must be text, got {_kind(value)}{several}")
        if _is_list(value):
            raise ValueError(
                f"{column} must be text, got a list; write a row for each of its texts"
            )
        if fault := text_fault(value):
            raise ValueError(f"{column} has {fault}")
        return value.strip() if strip else value

    def label(self, column: str) -> bool | None:
        """The label in a column: True for a positive pair; None if there is none.

        Raises:
            ValueError: the row is malformed, or the value is no label; the message names the
                column.
        """
        if self.error is not None:
            raise ValueError(self.error)
        value = self.values.get(column)
        if is_missing(value):
            return None
        known = _LABELS.get(value.strip().lower() if isinstance(value, str) else str(value).lower())
        if known is None or isinstance(value, (list, dict)):
            raise ValueError(
                f"{column} must be 0 or 1, no or yes, false or true, got {str(value)[:60]!r}"
            )
        return known


_NEGATIVE, _POSITIVE = ("0", "0.0", "false", "no"), ("1", "1.0", "true", "yes")
_LABELS = dict.fromkeys(_NEGATIVE, False) | dict.fromkeys(_POSITIVE, True)


def _is_list(text: str) -> bool:
    """Whether a text is a list of strings as JSON, Python or numpy write it."""
    stripped = text.strip()
    inner = stripped[1:-1].strip()
    ends = (stripped[:1], stripped[-1:], inner[:1], inner[-1:])
    return ends in (("[", "]", '"', '"'), ("[", "]", "'", "'")) and len(inner) > 1


def same_words(text: str) -> str:
    """A text without what no tokenizer sees: capitals, and the width of spaces."""
    return " ".join(text.casefold().split())


def is_missing(value: object) -> bool:
    """Whether a cell has no value: null, NaN, or nothing but spaces."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", bytes: "bytes", bool: "true or false"}
    return kinds.get(type(value), f"{type(value).__name__} {str(value)[:60]}")
