"""The user's own table: rows of images and texts, as questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.results import Failure
from dsd_trt.tables.columns import ColumnNames
from dsd_trt.tables.embedded import EmbeddedImage
from dsd_trt.tables.labelled import (
    negative_columns,
    negatives_of,
    none_usable,
    require_other,
    unread_negatives,
)
from dsd_trt.tables.row import TableRow, same_words
from dsd_trt.tables.row_images import RowImages
from dsd_trt.tables.table import Table
from dsd_trt.train.question import Question, shuffled

_UNMATCHED = "with label 0 whose image has no row with label 1"
_UNLABELLED = "without a label"


@dataclass(frozen=True)
class TableQuestions:
    """The questions of a table, and what became of its other rows.

    Attributes:
        questions: questions of kind "text", given an image the right text.
        rows: number of rows in the table.
        repeated: number of rows with image, text and label of another; they count as any other.
        unused: number of rows that make no question and are no negative, by the reason.
        failures: rows that cannot be used, by their place in the file, and why.
        unread: column that seems to have negatives and is not called so; "" without one.
    """

    questions: tuple[Question, ...]
    rows: int
    repeated: int
    unused: Mapping[str, int]
    failures: tuple[Failure, ...]
    unread: str = ""


@dataclass(frozen=True)
class _Described:
    """A row with its values: an image and a text, and whether they belong together."""

    image: Path | EmbeddedImage
    text: str
    source: str
    label: bool
    negatives: tuple[str, ...]
    place: str


def read_table(
    path: Path, seed: int, columns: ColumnNames | None = None, images: Path | None = None
) -> TableQuestions:
    """Read a table as questions; their source is the row's identifier, or its image's name.

    - Columns `image,text,negatives`, or `negative_1` and so on: a question per row, against the
      row's negatives, see `negatives_of`.
    - Columns `image,text,label`: a question per row of label 1, against its image's rows of label
      0; without any, its negatives are drawn, as below.
    - Columns `image,text` alone: a question per row, whose negatives are yet to be drawn from
      other rows' texts, see `draw_negatives`.

    Args:
        path: path of a CSV, JSONL or Parquet table, or "-" for standard input.
        seed: random seed of the right text's position.
        columns: names of the columns; None is the roles' own names.
        images: folder that image paths in it are relative to; None is its own.

    Raises:
        InputError: the file cannot be read, lacks a column, or has labels beside negatives; no row
            can be used; or no label is 1.
    """
    columns = columns or ColumnNames()
    table = Table.open(path, images)
    file_name = Path(table.name).name  # for failures
    image, text = columns.required(table, "image"), columns.required(table, "text")
    label, identifier = columns.optional(table, "label"), columns.optional(table, "id")
    if columns.id is None:
        identifier = None  # a column named id may hold anything
    if label in (image, text):
        label = None
    negatives = negative_columns(table)
    if label and negatives and columns.label is None:
        raise InputError(
            f"{table.name}, {table.start}: it has both {label!r} and {negatives[0]!r}. To learn "
            f"from the labels: --label-column {label}; to learn from the negatives, leave "
            f"{label!r} out"
        )
    negatives = [] if label else negatives
    files = RowImages(table, image)
    rows: list[_Described] = []
    failures: list[Failure] = []
    count = unlabelled = 0
    needed = [it for it in (image, text, label, identifier, *negatives) if it]
    for row in table.rows(needed):
        count += 1
        try:
            value = row.label(label) if label else True
            if value is None:
                unlabelled += 1
                continue
            name, file = files.of(row)
            described, source = row.text(text), _source(row, identifier) or name
            others = negatives_of(row, negatives)
            require_other(described, others)
            rows.append(_Described(file, described, source, value, others, row.place))
        except ValueError as error:
            failures.append(Failure(f"{file_name}, {row.place}", str(error)))
    if not rows:
        raise InputError(none_usable(table, count, failures, image, text))
    unused = {_UNLABELLED: unlabelled} if unlabelled else {}
    repeated = len(rows) - len({(row.image, row.text, row.label) for row in rows})
    if label:
        rows, unmatched = _with_labels(table.name, rows, failures)
        unused |= {_UNMATCHED: unmatched} if unmatched else {}
    unread = "" if label or negatives else unread_negatives(table, (image, text, identifier))
    asked = tuple(_questions(rows, seed))
    return TableQuestions(asked, count, repeated, unused, tuple(failures), unread)


def _with_labels(
    table: str, rows: Iterable[_Described], failures: list[Failure]
) -> tuple[list[_Described], int]:
    """Rows of label 1 with their image's texts of label 0, and the number of those left over."""
    by_image: dict[Path | EmbeddedImage, tuple[list[_Described], list[_Described]]] = {}
    for row in rows:
        by_image.setdefault(row.image, ([], []))[row.label].append(row)
    kept: list[_Described] = []
    unmatched = 0
    for wrong, right in by_image.values():
        before = len(kept)
        texts = tuple(dict.fromkeys(row.text for row in wrong))
        same = set(map(same_words, texts))
        for row in right:
            if same_words(row.text) in same:
                reason = f"{row.text!r} has the labels 0 and 1 with {row.image.name!r}"
                failures.append(Failure(f"{Path(table).name}, {row.place}", reason))
            else:
                kept.append(_Described(row.image, row.text, row.source, True, texts, row.place))
        unmatched += len(wrong) if len(kept) == before else 0
    if not kept:
        if not any(right for _, right in by_image.values()):
            raise InputError(f"no row of {table} that can be used has the label 1")
        raise InputError(f"no row of {table} makes a question: {failures[-1]}")
    return kept, unmatched


def _questions(rows: Iterable[_Described], seed: int) -> Iterator[Question]:
    for number, row in enumerate(rows):
        right, wrong = (row.image, row.text), [(row.image, text) for text in row.negatives]
        if wrong:
            yield shuffled("text", right, wrong, row.source, [seed, number])
        else:
            yield Question("text", (right,), 0, row.source, drawn=True)


def _source(row: TableRow, column: str | None) -> str | None:
    """Identifier of a row: texts and numbers alike; None without a column."""
    if column is None:
        return None
    value = row.values.get(column)
    if value is None or not str(value).strip():
        raise ValueError(f"{column} is empty")
    return str(value).strip()
