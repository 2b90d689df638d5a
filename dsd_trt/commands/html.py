"""Scores as a page."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from dsd_trt.commands.layout import NUMBERS
from dsd_trt.commands.origin import Origin
from dsd_trt.commands.output import Record, write_output
from dsd_trt.commands.provenance import run_facts
from dsd_trt.errors import InputError
from dsd_trt.html.explorer import Choice, Column, Explorer, Value
from dsd_trt.html.page import page
from dsd_trt.html.tables import failures
from dsd_trt.html.thumbnails import ThumbnailSize, thumbnails
from dsd_trt.image.preprocess import ImageSource
from dsd_trt.tables.values import to_cell

_LISTED = 1000  # failures that a page names

COLUMNS = (
    Column("Image", "image"),
    Column("Text", "text"),
    Column("Score", "number", 4),
    Column("Probability", "number", 3),
)
ERROR = Column("Not scored because", "words")


def refuse_terminal(output: str) -> None:
    """Refuse to print a page on a terminal.

    Raises:
        InputError: the output is a terminal.
    """
    if output == "-" and sys.stdout.isatty():
        raise InputError("a page is for a browser: name a file to write, -o FILE.html")


def write_html(output: str, records: Iterable[Record], origin: Origin) -> None:
    """Write records as one page, whole or not at all.

    Rows are written as they arrive. Memory holds names, texts and one block of thumbnails.

    Args:
        output: path of a file, or "-" for standard output.
        records: rows to write, read as they are scored.
        origin: what they come from.

    Raises:
        DsdError: the disk is full or cannot be written to; an existing file is unchanged.
    """
    write_output(output, ScorePage(origin).parts(records))


class ScorePage:
    """A page of scores.

    Args:
        origin: what the scores come from.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._images: dict[tuple[str, Hashable], int] = {}
        self._places: list[int] = []  # of each image's first record
        self._texts: dict[str, int] = {}
        self._failed: list[tuple[str, str, str]] = []  # rows with an error
        self._failures = self._written = 0
        errors = "error" in origin.layout.added
        best = Choice("best matches", -1)
        self._explorer = Explorer(
            "Scores",
            "pairs",
            (*COLUMNS, ERROR) if errors else COLUMNS,
            (best, Choice("pairs without a score", len(COLUMNS))) if errors else (best,),
            least=2,
            score=2,
            grid=origin.grid,
        )

    def parts(self, records: Iterable[Record]) -> Iterator[str]:
        """The page in parts, as records arrive."""
        what = (
            "Every image against every text." if self._origin.grid else "Pairs of image and text."
        )
        summary = (
            f"{what} Scores are relative: they rank texts for an image, or images for a text, "
            "within one bundle. A star marks the best match."
        )
        yield from page("Scores", summary, self._body(records), self._facts, self._tail())

    def _facts(self) -> dict[str, str]:
        return {**self._origin.facts(), **run_facts()}

    def _body(self, records: Iterable[Record]) -> Iterator[str]:
        yield self._explorer.element()
        for part in self._explorer.rows(map(self._row, records)):
            self._written += len(part.encode())
            yield part
        without = self._origin.failures()
        rows = [
            (it.image or "", it.text or "", it.reason)
            for it in without[: _LISTED - len(self._failed)]
        ]
        # Without a column for errors, what failed has no record, and is in no other format.
        errors = "error" in self._origin.layout.added
        elsewhere = "-f json or -f csv has them" if errors else "stderr has them"
        part = failures([*self._failed, *rows], self._failures + len(without), elsewhere)
        self._written += len(part.encode())
        yield part

    def _tail(self) -> Iterator[str]:
        yield from self._explorer.tail(
            [name for name, _ in self._images], list(self._texts), self._pictures, self._written
        )

    def _row(self, record: Record) -> tuple[Sequence[Value], Mapping[str, object]]:
        pictures = self._origin.images
        key = (record.image, None if pictures is None else pictures.key(record.place))
        if (image := self._images.setdefault(key, len(self._images))) == len(self._places):
            self._places.append(record.place)
        values: list[Value] = [
            image,
            self._texts.setdefault(record.text, len(self._texts)),
            None if math.isnan(record.score) else record.score,
            record.probability,
        ]
        if record.error is not None:
            self._failures += 1
            if len(self._failed) < _LISTED:
                self._failed.append((record.image, record.text, record.error))
        if len(self._explorer.columns) > len(COLUMNS):
            values.append(record.error)
        return values, self._passed(record)

    def _passed(self, record: Record) -> dict[str, object]:
        """Columns of the table that are passed on and shown nowhere else."""
        layout = self._origin.layout
        if not layout.names:
            return {}
        cells = {name: to_cell(it) for name, it in layout.values(record).items()}
        shown = {"", record.image, record.text}
        return {
            name: cell
            for name, cell in cells.items()
            if cell not in shown and name not in (*NUMBERS, "error")
        }

    def _pictures(self, size: ThumbnailSize) -> Iterator[str | None]:
        images = self._origin.images
        found: Iterator[ImageSource | None] = (
            None if images is None else images.source(place) for place in self._places
        )
        yield from thumbnails(found, size)
