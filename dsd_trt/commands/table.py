"""Scores as a table for a terminal."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsd_trt.commands.output import Record, by_image

MAX_COLUMN = 16  # widest minimum width of a text's column, in characters


def to_table(
    records: Sequence[Record], *, grid: bool, width: int = 100, color: bool = False
) -> str:
    """Lay records out for a terminal, best matches marked.

    A grid of images and texts that fits the width is shown as such, otherwise as the best text per
    image. Other records are listed.

    Args:
        records: scored pairs, those of an image adjacent.
        grid: whether the records are every image against every text.
        width: width of the terminal, in characters.
        color: whether the terminal shows colours.
    """
    names = _short_names(records)
    texts = list(dict.fromkeys(record.text for record in records))
    if not records:
        return ""
    if not grid or records[0].words is not None:
        table = _list(records, names)
    elif _grid_width(names.values(), texts) <= width:
        table = _grid(records, names, texts)
    else:
        table = _best_texts(records, names, len(texts)) if len(texts) > 1 else _list(records, names)
    buffer = io.StringIO()
    Console(file=buffer, width=width, force_terminal=color, highlight=False).print(table)
    # The console pads every line to the table's width.
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def _grid(records: Sequence[Record], names: dict[str, str], texts: Sequence[str]) -> Table:
    best = _best(records)
    table = _table("Scores. * is the best " + ("text of its image" if len(texts) > 1 else "image"))
    table.add_column("Image")
    for text in texts:
        table.add_column(Text(text), justify="right", min_width=min(len(text), MAX_COLUMN))
    for image, of_image in by_image(records).items():
        scores = {record.text: record for record in of_image}
        table.add_row(Text(names[image]), *(_score(scores[text], best) for text in texts))
    return table


def _best_texts(records: Sequence[Record], names: dict[str, str], texts: int) -> Table:
    table = _table(
        f"The best of {texts} texts for each image, and its lead over the second best.\n"
        "More texts: --top-k K. All scores: -f csv"
    )
    table.add_column("Image")
    table.add_column("Best text")
    likely = any(record.probability is not None for record in records)
    for heading in ("Score", *(["Prob."] if likely else []), "Lead"):
        table.add_column(heading, justify="right", no_wrap=True)
    for image, of_image in by_image(records).items():
        first, second = sorted(of_image, key=lambda record: -record.score)[:2]
        table.add_row(
            Text(names[image]),
            Text(first.text, style="bold green"),
            f"{first.score:.4f}",
            *([_probability(first)] if likely else []),
            f"{first.score - second.score:.4f}",
        )
    return table


def _list(records: Sequence[Record], names: dict[str, str]) -> Table:
    best = _best(records)
    table = _table("* is the best match" if best else None)
    table.add_column("Image")
    table.add_column("Text")
    table.add_column("Score", justify="right", no_wrap=True)
    likely = any(record.probability is not None for record in records)
    if likely:
        table.add_column("Prob.", justify="right", no_wrap=True)
    worded = any(record.words is not None for record in records)
    if worded:
        table.add_column("Words")
    previous = None
    for record in records:
        table.add_row(
            Text("" if record.image == previous else names[record.image]),
            Text(record.text, style="bold green" if record in best else ""),
            _score(record, best),
            *([_probability(record)] if likely else []),
            *([_words(record)] if worded else []),
        )
        previous = record.image
    return table


def _best(records: Sequence[Record]) -> set[Record]:
    """The best text of each image with several texts; for a single text, the best image."""
    records = [record for record in records if not math.isnan(record.score)]
    groups = [group for group in by_image(records).values() if len(group) > 1]
    if not groups and len({record.text for record in records}) == 1 < len(records):
        groups = [list(records)]
    best = set()
    for group in groups:
        highest = max(record.score for record in group)
        best |= {record for record in group if record.score == highest}
    return best


def _score(record: Record, best: set[Record]) -> Text:
    if math.isnan(record.score):
        return Text("-")
    if record in best:
        return Text(f"* {record.score:.4f}", style="bold green")
    return Text(f"{record.score:.4f}")


def _words(record: Record) -> Text:
    """Words with their scores, the highest one marked."""
    words = record.words or ()
    highest = max((it.score for it in words if not it.special), default=math.nan)
    shown = Text()
    for place, it in enumerate(words):
        marked = not it.special and it.score == highest
        shown.append("  " if place else "").append(
            f"{it.text}\u00a0{it.score:.3f}", style="bold" if marked else ""
        )
    return shown


def _probability(record: Record) -> str:
    return "" if record.probability is None else f"{record.probability:.3f}"


def _table(caption: str | None) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        caption=caption,
        caption_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _grid_width(names: Iterable[str], texts: Sequence[str]) -> int:
    columns = [max(map(len, names)), *(max(min(len(text), MAX_COLUMN), 8) for text in texts)]
    return sum(columns) + 2 * len(columns)


def _short_names(records: Sequence[Record]) -> dict[str, str]:
    """Image names without their common folder."""
    images = list(by_image(records))
    try:
        shared = os.path.commonpath([PurePath(image).parent for image in images])
    except ValueError:  # absolute and relative paths mixed
        return {image: image for image in images}
    return {image: str(PurePath(image).relative_to(shared)) for image in images}
