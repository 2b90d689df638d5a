"""Tables that a page shows as they are, with bars in their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsd_trt.html.escaped import escaped, isolated


@dataclass(frozen=True)
class Bar:
    """A number with a bar whose length it is.

    Attributes:
        text: the number as it is written.
        share: length of the bar as a share of the cell, in [0, 1].
        interval: ends of the number's interval, as shares; None if it has none.
        mark: place of a mark to compare with, as a share; None for no mark.
    """

    text: str
    share: float
    interval: tuple[float, float] | None = None
    mark: float | None = None


Cell = str | Bar


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    words: int = 1,
    *,
    heading: bool = False,
) -> str:
    """A table as HTML; the first cell of each row is its name.

    Args:
        caption: what the table is of.
        head: names of the columns.
        rows: cells of each row, one per column.
        words: number of columns of words; the others, behind them, have numbers.
        heading: whether a heading above says the same as the caption, which is then not shown.
    """
    kinds = [' class="words"' if at < words else "" for at in range(len(head))]
    unseen = ' class="hidden"' if heading else ""
    heads = "".join(
        f'<th scope="col"{kind}>{escaped(name)}</th>'
        for name, kind in zip(head, kinds, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row" class="words">{_content(row[0])}</th>'
        + "".join(
            f"<td{kind}>{_content(cell)}</td>"
            for cell, kind in zip(row[1:], kinds[1:], strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escaped(caption)}">'
        f'<table class="figures"><caption{unseen}>{escaped(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def described(facts: Mapping[str, str]) -> str:
    """Names with what they stand for, as a list."""
    items = "".join(
        f"<dt>{escaped(name)}</dt><dd>{isolated(it)}</dd>\n" for name, it in facts.items()
    )
    return f'<dl class="facts">\n{items}</dl>\n'


def section(title: str, content: str) -> str:
    """A part of a page, with its heading."""
    return f"<section><h2>{escaped(title)}</h2>\n{content}</section>\n"


def failures(rows: Sequence[tuple[str, str, str]], count: int, elsewhere: str = "") -> str:
    """What could not be scored, as a part of a page; nothing if there is nothing.

    Args:
        rows: image, text and reason of those that are listed; "" where there is none.
        count: number of all of them.
        elsewhere: where those are that are not listed, as the end of a sentence.
    """
    if not count:
        return ""
    head = ["Image", "Text", "Reason"]
    listed = table(f"Could not be scored: {count}", head, rows, words=3)
    more = count - len(rows)
    note = f"<p>{more} more are not listed here: {escaped(elsewhere)}.</p>\n" if more else ""
    return section("Failures", listed + note)


def _content(cell: Cell) -> str:
    if isinstance(cell, str):
        return isolated(cell)
    drawn = f'<rect class="length" width="{_place(cell.share)}" height="10"/>'
    if cell.interval is not None:
        low, high = (_place(it) for it in cell.interval)
        drawn += f'<path class="interval" d="M{low} 5H{high}"/>'
    if cell.mark is not None:
        place = _place(cell.mark)
        drawn += f'<path class="mark" d="M{place} 0V10"/>'
    return (
        f'<span class="number">{escaped(cell.text)}</span>'
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" '
        f'focusable="false">{drawn}</svg>'
    )


def _place(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}"
