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
from dsd_trt.image.missing import NO_IMAGE
from dsd_trt.tables.columns import ColumnNames, swapped, swapping
from dsd_trt.tables.embedded import EmbeddedImage
from dsd_trt.tables.row import TableRow, is_missing, same_words
from dsd_trt.tables.row_images import RowImages
from dsd_trt.tables.table import Table

NEGATIVES = "negatives"
_FEW = 10  # pairs of a label, or images, below which intervals and thresholds tell nothing
_NUMBERED = re.compile(r"negative_?\d+")


def image_key(image: Path | EmbeddedImage) -> str:
    """Path of an image file, or hash of a stored image: equal for the same image."""
    return image.digest.hex() if isinstance(image, EmbeddedImage) else os.fspath(image)


@dataclass(frozen=True)
class LabelledPair:
    """An image and a text that are said to belong together, or not to.

    Attributes:
        image: path of the image file, or the stored image.
        text: text of the pair.
        label: whether the pair is positive.
        subset: value of the column that divides the table; "" without one.
    """

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
            described, (_, file) = row.text(text), images.of(row)
            others = negatives_of(row, negatives)
            require_other(described, others)
            of_subset = _subset(row, subset)
            pairs.append(LabelledPair(file, described, value, of_subset))
            pairs += (LabelledPair(file, it, False, of_subset) for it in others)
        except ValueError as error:
            failures.append(Failure(f"{Path(table.name).name}, {row.place}", str(error)))
    if not pairs:
        raise InputError(none_usable(table, rows, failures, image, text))
    return LabelledTable(tuple(pairs), rows, unlabelled, tuple(failures))


def doubts(pairs: Sequence[LabelledPair]) -> Iterator[str]:
    """Reasons to doubt what is fitted to labelled pairs, for the user."""
    positives = sum(pair.label for pair in pairs)
    images = len({pair.key for pair in pairs})
    if min(positives, len(pairs) - positives, images) < _FEW:
        yield (
            f"{counted(positives, 'positive pair')} and {len(pairs) - positives} negative, of "
            f"{counted(images, 'image')}, are too few to rely on any figure. Label at least {_FEW} "
            "of each; 200 pairs are enough"
        )
    labels = dict[tuple[str, str], set[bool]]()
    for pair in pairs:
        labels.setdefault((pair.key, same_words(pair.text)), set()).add(pair.label)
    if both := [text for (_, text), of in labels.items() if len(of) == 2]:
        yield (
            f"{counted(len(both), 'pair')} with the labels 1 and 0, such as {both[0]!r}: they "
            "count as both. Look at the labels"
        )


def none_usable(table: Table, rows: int, failures: Sequence[Failure], image: str, text: str) -> str:
    """Message that no row of a table can be used: the first reason, and the likeliest remedy.

    Args:
        table: table that was read to its end.
        rows: number of its rows.
        failures: why rows cannot be used, in order; without any, none has a label.
        image: column of the images.
        text: column of the texts.
    """
    if not rows:
        return f"{table.name} has no rows"
    message = f"{table.name} has {counted(rows, 'row')}, and none can be used"
    if not failures:
        return f"{message}, because none has a label"
    message += f": {failures[0]}"
    values = next(table.rows([image, text])).values
    if swapped(values.get(image), values.get(text)):
        return f"{message}. Are the columns swapped? {swapping(image, text)}"
    if failures[0].reason.startswith(NO_IMAGE):
        return f"{message}. Paths are relative to the table's folder, or to that of --images"
    return message


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
            f"{renaming(unread_negatives(table, (image, text)))}"
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


def unread_negatives(table: Table, used: Sequence[str | None]) -> str:
    """A column that seems to have negatives and is not read as such; "" without one.

    Args:
        table: table that has no columns of negatives.
        used: columns that are read.
    """
    found = (it for it in table.first_columns if "negative" in it.lower() and it not in used)
    return next(found, "")


def renaming(column: str) -> str:
    """End of a message: how a column that seems to have negatives is read; "" for ""."""
    return f"; the column {column!r} is read as such if it is called negative_1" if column else ""


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


def require_other(text: str, negatives: Sequence[str]) -> None:
    """Refuse negatives that are the text itself, whatever their capitals and spaces.

    Raises:
        ValueError: one of them is; the message has the text.
    """
    if same_words(text) in map(same_words, negatives):
        raise ValueError(f"{text!r} is among its own negatives")


def _listed(value: object, column: str) -> Iterator[object]:
    """Items of a list, of a JSON list in a string, or of a string separated by `|`."""
    if isinstance(value, str):
        if column != NEGATIVES:
            value = [value]
        elif value.lstrip().startswith(("[", "{")):
            try:
                value = parse_json(value)
            except ValueError as error:
                raise ValueError(
                    f"{column} is not a valid JSON list: {error}. Python writes one with "
                    'json.dumps(texts); texts separated by "|" do as well'
                ) from None
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
