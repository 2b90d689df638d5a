"""ComVG: given a sentence, the right image of two, which differ in one part of what it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.train.data.files import DSD, find_file, read_csv
from dsd_trt.train.question import Question, shuffled

_FILE = "compositional_visual_genome.csv"
_COLUMNS = ("sentence", "pos_image_id", "neg_image_id", "neg_value")
_KINDS = {"subject": "subject", "object": "object", "verb": "predicate"}
_FOLDERS = ("images", "VG_100K", "VG_100K_2", "")


@dataclass(frozen=True)
class Row:
    """One row of the file.

    Attributes:
        kind: what the wrong image shows instead: another "subject", "object" or "predicate".
        sentence: true of the right image.
        right: that image's number in Visual Genome.
        wrong: the other image's.
    """

    kind: str
    sentence: str
    right: str
    wrong: str


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of the released CSV file, in order; needs no images.

    Raises:
        InputError: it is malformed, with the line.
    """
    for line, cells in read_csv(path, _COLUMNS):
        sentence, right, wrong, part = (cells[column].strip() for column in _COLUMNS)
        if part not in _KINDS:
            raise InputError(
                f"{path}, line {line}: neg_value is {part!r}, not one of {', '.join(_KINDS)}"
            )
        if not sentence:
            raise InputError(f"{path}, line {line}: no sentence")
        if not (right.isdecimal() and wrong.isdecimal()) or right == wrong:
            raise InputError(
                f"{path}, line {line}: the images must be two numbers, got {right!r} and {wrong!r}"
            )
        yield Row(_KINDS[part], sentence, right, wrong)


def read_comvg(root: Path, seed: int) -> Iterator[Question]:
    """Every row as a question of kind "subject", "object" or "predicate".

    The source is the right image's number. Rows that the file repeats are asked again, as there.

    Args:
        root: folder of the CSV file and of Visual Genome's images, which lie in its folders
            `images`, `VG_100K` and `VG_100K_2` or in itself.
        seed: of the right image's place.

    Raises:
        InputError: a file is missing or malformed.
    """
    folders = [root / folder for folder in _FOLDERS]
    for number, row in enumerate(read_rows(find_file(_FILE, [root], DSD))):
        right, wrong = (
            find_file(f"{image}.jpg", folders, "the Visual Genome site, images part 1 and part 2")
            for image in (row.right, row.wrong)
        )
        yield shuffled(
            row.kind, (right, row.sentence), [(wrong, row.sentence)], row.right, [seed, number]
        )
