"""A table of many rows in a page, which its reader sorts, filters and searches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from dsd_trt.html.escaped import json_escaped
from dsd_trt.html.page import script
from dsd_trt.html.thumbnails import PAGE_BYTES, ThumbnailSize

BLOCK = 64
"""Thumbnails of an element with pictures, which a browser parses when it shows one of them."""

Value = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: heading of the column.
        kind: what its cells are: numbers of images or texts, numbers to show, or words.
        digits: decimal places of numbers that are shown.
    """

    name: str
    kind: Literal["image", "text", "number", "words"]
    digits: int = 0


@dataclass(frozen=True)
class Choice:
    """Rows that a reader can choose to see alone.

    Attributes:
        name: what they are, such as "best matches".
        column: number of the column that says so; -1 for the best score of each image.
        value: what these rows have there; None for anything at all.
    """

    name: str
    column: int
    value: str | None = None


@dataclass(frozen=True)
class Explorer:
    """A table of rows, and what can be done with it.

    Attributes:
        label: what the rows are, such as "Scores".
        unit: a row in the plural, such as "pairs".
        columns: columns of the table; the first one has images.
        choices: rows that can be chosen to be seen alone.
        least: number of the column whose least value can be chosen; -1 for none.
        score: number of the column of scores, by which texts of an image and images of a text are
            ranked; -1 for none. Texts are in the column before it.
        grid: whether rows can also be shown as images against texts, with their scores, or with
            the numbers of the column after them.
    """

    label: str
    unit: str
    columns: Sequence[Column]
    choices: Sequence[Choice] = ()
    least: int = -1
    score: int = -1
    grid: bool = False

    def element(self) -> str:
        """The element where the script puts the table."""
        return (
            '<div id="explorer"></div>\n<noscript><p>The table needs JavaScript. This page has '
            "its own script and fetches nothing; -f csv writes a table that needs none.</p>"
            "</noscript>\n"
        )

    def rows(self, rows: Iterable[tuple[Sequence[Value], Mapping[str, object]]]) -> Iterator[str]:
        """The rows as an element that shows nothing, in parts as they arrive.

        Args:
            rows: values of each row, one per column, and what else its details show.
        """
        yield '<script type="application/json" id="rows">['
        separator = "\n"
        for values, more in rows:
            yield separator + json_escaped([*values, more] if more else values)
            separator = ",\n"
        yield "]</script>\n"

    def tail(
        self,
        images: Sequence[str],
        texts: Sequence[str],
        pictures: Callable[[ThumbnailSize], Iterator[str | None]],
        written: int,
    ) -> Iterator[str]:
        """Names, script and thumbnails, which follow everything that is shown without them.

        Args:
            images: names of the images, which rows have the numbers of.
            texts: texts, which rows have the numbers of.
            pictures: function of the size that fits to the images' thumbnails, in base64.
            written: number of bytes of the page so far.
        """
        setup = {
            "label": self.label,
            "unit": self.unit,
            "columns": [asdict(it) for it in self.columns],
            "choices": [asdict(it) for it in self.choices],
            "least": self.least,
            "score": self.score,
            "grid": self.grid,
            "block": BLOCK,
        }
        names = json_escaped({"images": images, "texts": texts})
        yield f'<script type="application/json" id="names">{names}</script>\n'
        yield f'<script type="application/json" id="setup">{json_escaped(setup)}</script>\n'
        yield f"<script>{script()}</script>\n"
        left = PAGE_BYTES - written - len(names.encode()) - len(script()) - 64 * len(images)
        if (size := ThumbnailSize.fitting(len(images), left)) is None:
            return
        block: list[str | None] = []
        for number, picture in enumerate(pictures(size), 1):
            block.append(picture)
            if len(block) == BLOCK or number == len(images):
                first = (number - 1) // BLOCK
                content = json_escaped(block)
                yield f'<script type="application/json" id="pictures-{first}">{content}</script>\n'
                block = []
