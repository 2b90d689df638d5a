"""ComVG: given a sentence, choose the right one of two images.

The images differ in the subject, the object or the predicate of the sentence.
"""

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
    """One row of the released CSV file.

    Attributes:
        kind: aspect in which the wrong image differs: "subject", "object" or "predicate".
        sentence: text that describes the right image.
        right: Visual Genome number of the right image.
        wrong: Visual Genome number of the wrong image.
    """

    kind: str
    sentence: str
    right: str
    wrong: str


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of the released CSV file, in order; the images need not exist.

    Raises:
        InputError: the file is malformed; the message names the line.
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
    """One question per row, of kind "subject", "object" or "predicate".

    The source is the right image's number. Duplicate rows of the file yield duplicate questions.

    Args:
        root: folder of the CSV file and of Visual Genome's images, which are in its subfolders
            `images`, `VG_100K` and `VG_100K_2` or in itself.
        seed: random seed of the right image's position.

    Raises:
        InputError: a file is missing or malformed; without the CSV file already when called.
    """
    return _questions(find_file(_FILE, [root], DSD), root, seed)


def _questions(path: Path, root: Path, seed: int) -> Iterator[Question]:
    folders = [root / folder for folder in _FOLDERS]
    for number, row in enumerate(read_rows(path)):
        right, wrong = (
            find_file(f"{image}.jpg", folders, "the Visual Genome site, images part 1 and part 2")
            for image in (row.right, row.wrong)
        )
        yield shuffled(
            row.kind, (right, row.sentence), [(wrong, row.sentence)], row.right, [seed, number]
        )
