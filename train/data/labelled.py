"""The labelled pairs of a table, beside its questions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dsd_trt.image.preprocess import image_identity
from dsd_trt.tables.columns import ColumnNames
from dsd_trt.tables.labelled import LabelledPair, negative_columns, read_labelled
from dsd_trt.tables.table import Table
from dsd_trt.train.question import Question, split

if TYPE_CHECKING:
    from dsd_trt.train.data.catalogue import Part


def labelled_pairs(
    path: Path,
    columns: ColumnNames,
    part: Part,
    seed: int,
    limit: int | None,
    images: Path | None = None,
) -> tuple[LabelledPair, ...]:
    """The test pairs of a table whose labels are known; none if it has images and texts alone.

    Args:
        path: path of the table.
        columns: names of the columns.
        part: the table's part "test", from `open_dataset`.
        seed: random seed of the few-shot sources, whose images are left out.
        limit: maximum number of questions, whose images' pairs are kept; None keeps all pairs.
        images: folder that image paths in it are relative to; None is its own.

    Raises:
        InputError: the table cannot be read, as for `read_labelled`.
    """
    table = Table.open(path, images)
    if columns.optional(table, "label") is None and not negative_columns(table):
        return ()
    assert part.table is not None
    few, rest = split(part.table.questions, part.fraction, seed)
    learned, asked = _images(few), _images(rest[:limit])
    return tuple(
        pair
        for pair in read_labelled(table, columns).pairs
        if (image := image_identity(pair.image)) not in learned
        and (limit is None or image in asked)
    )


def _images(questions: Iterable[Question]) -> set[object]:
    return {image_identity(image) for it in questions for image, _ in it.candidates}
