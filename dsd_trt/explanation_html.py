"""Explanations as a page: one file that needs no network and runs no script."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np
from PIL import Image

from dsd_trt.errors import InputError, counted, cut
from dsd_trt.explanation import Contrast, Explanation
from dsd_trt.explanation_png import Pictured, best_words, fitting, in_words, largest_heat
from dsd_trt.failure import Failure
from dsd_trt.heat_map import legend, of_scale, overlay
from dsd_trt.html.escaped import escaped, isolated
from dsd_trt.html.page import page
from dsd_trt.html.tables import failures, table
from dsd_trt.html.thumbnails import PAGE_BYTES, ThumbnailSize, thumbnail
from dsd_trt.words import Word

MOST = 400
"""Explanations of one page, those that are compared with included."""

_FRAME = 10**6  # bytes for the style, what failed and the provenance
_LONGEST = 1000  # characters of a name or a text that is shown
_SUMMARY = (
    "Heat says where in the image a word was found. The heat of a word's places sums to its score."
)


def to_html(
    results: Iterable[Pictured],
    count: int,
    lost: Sequence[Failure],
    facts: Callable[[], Mapping[str, str]],
) -> Iterator[str]:
    """A page of explanations, in their order; it has at most `PAGE_BYTES`.

    Args:
        results: explanations, read as they are drawn.
        count: number of explanations at most, each with a comparison or none.
        lost: images and texts that could not be explained, read after `results`.
        facts: function that returns names and values for the foot, called at the end.

    Raises:
        InputError: there are more explanations than a page has room for.
    """
    if count > MOST:
        raise InputError(
            f"{counted(count, 'explanation')} are too many for one page of at most {MOST}: give "
            "fewer images or texts, or write -o FILE.json"
        )
    yield from page("Explained scores", _SUMMARY, _body(results, count, lost), facts)


def _body(results: Iterable[Pictured], count: int, lost: Sequence[Failure]) -> Iterator[str]:
    links, sections = [], []
    for number, it in enumerate(results, 1):
        text, image = (
            isolated(_shown(name)) for name in (it.explanation.text, it.explanation.image)
        )
        links.append(
            f'<li><a href="#e{number}">{text}</a> {image}, score {it.explanation.score:.4f}</li>'
        )
        room = (PAGE_BYTES - _FRAME) // max(1, count) - len(links[-1].encode())
        sections.append(_section(number, it, room))
    if len(links) > 1:
        yield (
            f"<nav><details open><summary>{counted(len(links), 'explanation')}</summary>"
            f"<ol>{''.join(links)}</ol></details></nav>\n"
        )
    yield from sections
    yield failures([(it.image or "", it.text or "", it.reason) for it in lost], len(lost))


def _section(number: int, it: Pictured, room: int) -> str:
    """An explanation in at most `room` bytes, which its pictures share."""
    largest, shown = largest_heat(it.both), fitting(it.picture)
    drawn = list(_drawn(it.both, shown, largest))
    size = ThumbnailSize.fitting(len(drawn), room - len(_marked(number, it, repeat(None)).encode()))
    made = (None if size is None else thumbnail(picture, size) for picture in drawn)
    return _marked(number, it, made)


def _drawn(
    both: Sequence[Explanation], shown: Image.Image, largest: float
) -> Iterator[Image.Image]:
    """Pictures of a section in their order: the image, then an overlay for each word."""
    for one in both:
        yield shown
        for word in one.words:
            assert word.heat is not None
            yield overlay(shown, word.heat, largest)


def _marked(number: int, it: Pictured, pictures: Iterator[str | None]) -> str:
    """A section as HTML, with pictures as base64."""
    body = "".join(_panels(one, pictures, first=one is it.explanation) for one in it.both)
    compared = "" if it.contrast is None else _difference(number, it.contrast)
    title = isolated(_shown(it.explanation.text))
    return (
        f'<section id="e{number}" aria-labelledby="h{number}"><h2 id="h{number}">{title}</h2>\n'
        f"{body}{compared}{_legend(largest_heat(it.both))}</section>\n"
    )


def _panels(it: Explanation, pictures: Iterator[str | None], *, first: bool) -> str:
    """The image, and an overlay for each word."""
    likely = "" if np.isnan(it.probability) else f", probability {it.probability:.3f}"
    title = "" if first else f"<h3>Against: {isolated(_shown(it.text))}</h3>\n"
    items = [f"<li>{_picture(next(pictures), 'The image')}<p>image</p></li>"]
    best = best_words(it)
    for word in it.words:
        kind, says = (' class="best"', " (highest)") if word in best else ("", "")
        items.append(
            f"<li{kind}>{_picture(next(pictures), _where(word))}<p><b>{isolated(word.text)}</b> "
            f"{word.score:.4f}{says}{_tokens(word)}</p></li>"
        )
    return (
        f"{title}<p>{isolated(_shown(it.image))}, score {it.score:.4f}{likely}</p>\n"
        f'<ul class="panels">{"".join(items)}</ul>\n'
    )


def _picture(content: str | None, label: str) -> str:
    """A picture; a frame in its place where there is no room for one."""
    if content is None:
        return f'<span class="no-picture" role="img" aria-label="{escaped(label)}"></span>'
    return f'<img src="data:image/jpeg;base64,{content}" alt="{escaped(label)}">'


def _where(word: Word) -> str:
    """Where a word was found, for those who see no picture."""
    assert word.heat is not None
    if not word.heat.any():
        return f"{word.text}: found nowhere"
    row, column = np.unravel_index(int(word.heat.argmax()), word.heat.shape)
    rows, columns = word.heat.shape
    return (
        f"{word.text}: most heat {100 * (column + 0.5) / columns:.0f} % from the left and "
        f"{100 * (row + 0.5) / rows:.0f} % from the top"
    )


def _tokens(word: Word) -> str:
    if len(word.tokens) < 2 or word.special:
        return ""
    parts = (f"{isolated(it.text.removesuffix('</w>'))} {it.score:.4f}" for it in word.tokens)
    return f"<br>tokens: {', '.join(parts)}"


def _difference(number: int, contrast: Contrast) -> str:
    decisive = contrast.decisive
    rows = [
        (
            f"{in_words(it.words, it.others)}{' (decides)' if it is decisive else ''}",
            f"{it.difference:+.4f}",
        )
        for it in contrast.changes
    ]
    rows.append(("together", f"{contrast.difference:+.4f}"))
    return table(f"Difference {number}", ["Words", "Adds to the difference"], rows)


def _legend(largest: float) -> str:
    numbers = "".join(
        f"<span>{largest * of_scale(share):.2g}</span>" if share else "<span>0</span>"
        for share in (0, 0.5, 1)
    )
    label = "Scale of heat, from dark blue to light yellow"
    return f'<div class="scale">{_picture(_scale(), label)}<div>{numbers}</div></div>\n'


@functools.cache
def _scale() -> str | None:
    return thumbnail(legend(352, 12), ThumbnailSize(352, 10_000))


def _shown(text: str) -> str:
    return cut(text, _LONGEST)
