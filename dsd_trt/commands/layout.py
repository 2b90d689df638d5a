"""Columns of an output: those passed on from a table, and those that are added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dsd_trt.commands.output import Record

if TYPE_CHECKING:
    from dsd_trt.pairs.source import PairSource
    from dsd_trt.tables.table import Table

NUMBERS = ("score", "probability")
PAIRS = (*NUMBERS, "error")
"""Columns that are added to each row of a table of pairs."""
WORDS = "words"
"""Column of the words of a text, each with its score and its tokens."""


@dataclass(frozen=True)
class Layout:
    """Columns of an output.

    Attributes:
        added: columns that are added, attributes of a `Record`.
        table: table whose columns are passed on; None if they come from no table.
        names: names of the passed columns in the output, by their names in the rows.
        embedded: column of the rows that has the images themselves; texts have their names.
    """

    added: tuple[str, ...]
    table: Table | None = None
    names: dict[str, str] = field(default_factory=dict)
    embedded: str | None = None

    @classmethod
    def passing(cls, source: PairSource, added: tuple[str, ...] = PAIRS) -> Layout:
        """All columns of a source's rows, then the added ones.

        A column that has the name of an added one is passed on as `input_NAME`.
        """
        names = _distinct_from(added, source.columns)
        return cls(added, source.table, names, source.embedded)

    @property
    def renamed(self) -> dict[str, str]:
        """New names of the columns that are passed on under another name."""
        return {name: to for name, to in self.names.items() if name != to}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns in order."""
        return (*self.names.values(), *self.added)

    def values(self, record: Record) -> dict[str, object]:
        """Values of a record by column, None where there is none, for formats of text.

        A key that a row of JSONL does not have is not there.
        """
        passed = record.row.values if record.row is not None else {}
        values = {to: passed[name] for name, to in self.names.items() if name in passed}
        if self.embedded is not None and record.row is not None:
            values[self.names[self.embedded]] = record.image or None
        for name in self.added:
            value = getattr(record, name)
            if name == WORDS and value is not None:
                value = [word.to_plain() for word in value]
            missing = isinstance(value, float) and math.isnan(value)
            values[name] = None if missing else value
        return values


MATRIX = Layout(("image", "text", *NUMBERS))
"""Columns of the scores of images and texts."""


def with_words(layout: Layout) -> Layout:
    """The same columns, and the one of words."""
    return replace(layout, added=(*layout.added, WORDS))


def _distinct_from(added: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    names, taken = dict[str, str](), {*added, *columns}
    for column in columns:
        name, number = column, 2
        if column in added:
            name = f"input_{column}"
            while name in taken:
                name, number = f"input_{column}_{number}", number + 1
            taken.add(name)
        names[column] = name
    return names
