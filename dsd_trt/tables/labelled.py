"""Labelled pairs of a table: positives and negatives, from its labels or its lists of negatives."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.errors import InputError, counted
from dsd_trt.failure import Failure
from dsd_trt.files.rows import text_fault
from dsd_trt.files.schema import parse_json
from dsd_trt.tables.columns import ColumnNames
from dsd_trt.tables.embedded import EmbeddedImage
from dsd_trt.tables.row import TableRow, is_missing
from dsd_trt.tables.row_images import RowImages
from dsd_trt.tables.table import Table

NEGATIVES = "negatives"
_NUMBERED = re.compile(r"negative_?\d+")


def image_key(image: Path | EmbeddedImage) -> str:
    """Path of an image file, or hash of a stored image: equal for the same image."""
    return image.digest.hex() if isinstance(image, EmbeddedImage) else os.fspath(image)


@dataclass(frozen=True)
class LabelledPair:
    """An image and a text that are said to belong together, or not to.

    Attributes:
        name: image path as written in the table, or hash of an image that is stored there.
        image: path of the image file, or the stored image.
        text: text of the pair.
        label: whether the pair is positive.
        subset: value of the column that divides the table; "" without one.
    """

    name: str
    image: Path | EmbeddedImage
    text: str
    label: bool
    subset: str = ""

    @property
    def key(self) -> str:
        """Key of the image, as for `image_key`."""
        return image_key(self.image)


@dataclass(frozen=True)
class LabelledTable:
    """All labelled pairs of a table.

    Attributes:
        pairs: pairs in order; a row with negatives has a positive pair and its negative ones.
        rows: number of rows in the table.
        unlabelled: number of rows with an empty label, which are left out.
        failures: rows that cannot be used, by their place in the file, and why.
    """

    pairs: tuple[LabelledPair, ...]
    rows: int
    unlabelled: int
    failures: tuple[Failure, ...]


def read_labelled(
    table: Table, columns: ColumnNames | None = None, subset: str | None = None
) -> LabelledTable:
    """Read a table with columns `image,text,label`, or `image,text` and negatives.

    Negatives are texts that do not describe the row's image: a column `negatives` with a list (in
    CSV a JSON list, or texts separated by `|`), or columns `negative_1`, `negative_2` and so on.

    Args:
        table: table whose image paths are relative to its folder; Parquet may have the images.
        columns: names of the columns of images, texts and labels.
        subset: column that divides the table; None for none.

    Raises:
        InputError: a column is missing, no row can be used, or the file cannot be read.
    """
    image, text, label, negatives = labelled_columns(table, columns, subset)
    images = RowImages(table, image)
    pairs: list[LabelledPair] = []
    failures: list[Failure] = []
    rows = unlabelled = 0
    for row in table.rows(_needed(image, text, label, subset, negatives)):
        rows += 1
        try:
            value = row.label(label) if label else True
            if value is None:
                unlabelled += 1
                continue
            described, (name, file) = row.text(text), images.of(row)
            others = negatives_of(row, negatives)
            if described in others:
                raise ValueError(f"{described!r} is among its own negatives")
            of_subset = _subset(row, subset)
            pairs.append(LabelledPair(name, file, described, value, of_subset))
            pairs += (LabelledPair(name, file, it, False, of_subset) for it in others)
        except ValueError as error:
            failures.append(Failure(f"{Path(table.name).name}, {row.place}", str(error)))
    if not pairs:
        first = f": {failures[0]}" if failures else ""
        raise InputError(
            f"{table.name} has {counted(rows, 'row')}, and none can be used{first}"
            if rows
            else f"{table.name} has no rows"
        )
    return LabelledTable(tuple(pairs), rows, unlabelled, tuple(failures))


def labelled_columns(
    table: Table, columns: ColumnNames | None = None, subset: str | None = None
) -> tuple[str, str, str | None, list[str]]:
    """Columns of images, texts, labels and negatives; of the last two, one is missing.

    Args:
        table: table of labelled pairs.
        columns: names of the columns of images, texts and labels.
        subset: column that divides the table; None for none.

    Raises:
        InputError: a column is missing.
    """
    columns = columns or ColumnNames()
    image, text = columns.required(table, "image"), columns.required(table, "text")
    label = columns.optional(table, "label")
    negatives = [] if label else negative_columns(table)
    if not label and not negatives:
        raise InputError(
            f"{table.name}, {table.start}: no labels. Add a column label, 1 where the text "
            f"describes the image and 0 where not, or name it: --label-column NAME; or a column "
            f"{NEGATIVES} of texts that do not describe it"
        )
    if subset is not None and not table.has(subset):
        raise InputError(
            f"{table.name}, {table.start}: no column {subset!r} among "
            f"{', '.join(map(repr, table.first_columns))}. Name one of them: --by COLUMN"
        )
    return image, text, label, negatives


def negative_columns(table: Table) -> list[str]:
    """Columns of negatives that a table has: `negatives`, or `negative_1` and so on."""
    if not table.may_have("negative"):
        return []
    if table.has(NEGATIVES):
        return [NEGATIVES]
    return [name for name in table.columns if _NUMBERED.fullmatch(name)]


def negatives_of(row: TableRow, columns: Sequence[str]) -> tuple[str, ...]:
    """The distinct negatives of a row; without columns, none.

    Raises:
        ValueError: there are columns and no negatives in them, or something else than texts.
    """
    found: dict[str, None] = {}
    for column in columns:
        value = row.values.get(column)
        if is_missing(value):
            continue
        for text in _listed(value, column):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{column} must be texts, got {str(text)[:60]!r}")
            if fault := text_fault(text):
                raise ValueError(f"{column} has {fault}")
            found[text.strip()] = None
    if columns and not found:
        raise ValueError(f"{columns[0]} is empty: texts that do not describe the image are needed")
    return tuple(found)


def _listed(value: object, column: str) -> Iterator[object]:
    """Items of a list, of a JSON list in a string, or of a string separated by `|`."""
    if isinstance(value, str):
        if column != NEGATIVES:
            value = [value]
        elif value.lstrip().startswith("["):
            try:
                value = parse_json(value)
            except ValueError as error:
                raise ValueError(f"{column} is not a valid JSON list: {error}") from None
        else:
            value = [text for text in value.split("|") if text.strip()]
    if not isinstance(value, list):
        raise ValueError(f'{column} must be a list of texts, such as ["a dog", "a cat"]')
    yield from value


def _needed(
    image: str, text: str, label: str | None, subset: str | None, negatives: Sequence[str]
) -> list[str]:
    return list(dict.fromkeys(it for it in (image, text, label, subset, *negatives) if it))


def _subset(row: TableRow, column: str | None) -> str:
    value = None if column is None else row.values.get(column)
    return "" if is_missing(value) else str(value).strip()
