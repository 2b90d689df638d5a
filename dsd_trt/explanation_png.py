"""Explanations as one picture: each image beside overlays, one panel a word, with a legend."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dsd_trt.errors import InputError, counted, cut
from dsd_trt.explanation import Contrast, Explanation
from dsd_trt.files.whole import whole
from dsd_trt.heat_map import legend, of_scale, overlay
from dsd_trt.words import Word

SIDE = 176
"""Longest side of a panel, in pixels."""
MOST = 60
"""Rows of one picture; more would be too tall to look at."""

_GAP, _ACROSS = 12, 6  # pixels between panels, panels beside each other
_CAPTION, _TITLE, _SCALE = 20, 46, 44  # heights in pixels
_TEXT, _FAINT, _RULE = "#16181d", "#5b6270", "#d6dae1"
_WIDTH = _ACROSS * (SIDE + _GAP) + _GAP
_LISTED = 4  # largest changes between two texts


class Pictured(NamedTuple):
    """An explanation to show.

    Attributes:
        explanation: explanation of one image and one text.
        contrast: its comparison with another text; None for none.
        picture: the image; None where it is not known.
    """

    explanation: Explanation
    contrast: Contrast | None
    picture: Image.Image | None

    @property
    def both(self) -> list[Explanation]:
        """The explanation, and the one that it is compared with."""
        return [self.explanation, *([self.contrast.second] if self.contrast else [])]


def fitting(picture: Image.Image | None) -> Image.Image:
    """A picture in the size of a panel; a grey one where there is none."""
    if picture is None:
        return Image.new("RGB", (SIDE, SIDE), "#9aa0a8")
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(it * scale)) for it in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def largest_heat(explanations: Sequence[Explanation]) -> float:
    """The largest heat of a place of any word, which gets the last colour of the scale."""
    return max(
        float(word.heat.max()) for it in explanations for word in it.words if word.heat is not None
    )


def best_words(explanation: Explanation) -> tuple[Word, ...]:
    """The words with the highest score, which have a frame; `<end>` is no word."""
    words = [it for it in explanation.words if not it.special]
    best = max((it.score for it in words), default=None)
    return tuple(it for it in words if it.score == best)


def write_png(path: Path, results: Sequence[Pictured]) -> None:
    """Draw explanations below each other, those of a contrast with one scale.

    Args:
        path: file to write, whole or not at all.
        results: explanations in their order.

    Raises:
        InputError: there are more rows than a picture has room for.
        DsdError: the disk is full or cannot be written to.
    """
    rows = sum(len(it.both) for it in results)
    if rows > MOST:
        raise InputError(
            f"{counted(rows, 'row')} are too many for one picture of at most {MOST}: give fewer "
            "images or texts, or write -o FILE.html"
        )
    parts = []
    for it in results:
        largest, picture = largest_heat(it.both), fitting(it.picture)
        parts += [_row(one, picture, largest) for one in it.both]
        parts.append(_foot(largest, it.contrast))
    page = Image.new("RGB", (_WIDTH, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    with whole(path) as file:
        page.save(file, "PNG", optimize=True)


def _row(it: Explanation, picture: Image.Image, largest: float) -> Image.Image:
    """One explanation: its title, the image, and a panel for each word."""
    panels = 1 + len(it.words)
    lines = -(-panels // _ACROSS)
    line = picture.height + _CAPTION + _GAP
    made = Image.new("RGB", (_WIDTH, _TITLE + lines * line), "white")
    draw = ImageDraw.Draw(made)
    likely = "" if np.isnan(it.probability) else f", probability {it.probability:.3f}"
    _write(draw, (_GAP, 6), it.text, 17, _WIDTH - 2 * _GAP)
    score = f"score {it.score:.4f}{likely} · {it.image}"
    _write(draw, (_GAP, 27), score, 12, _WIDTH - 2 * _GAP, _FAINT)
    best = best_words(it)
    for place in range(panels):
        left = _GAP + place % _ACROSS * (SIDE + _GAP)
        top = _TITLE + place // _ACROSS * line
        caption, color, shown = "image", _FAINT, picture
        if place:
            word = it.words[place - 1]
            assert word.heat is not None
            shown = overlay(picture, word.heat, largest)
            color = _TEXT if word in best else _FAINT
            caption = f"{word.text}  {word.score:.3f}"
        made.paste(shown, (left, top))
        if place and color == _TEXT:  # the word that was found best
            box = (left - 2, top - 2, left + shown.width + 1, top + shown.height + 1)
            draw.rectangle(box, outline=_TEXT, width=2)
        _write(draw, (left, top + picture.height + 3), caption, 13, SIDE, color)
    return made


def _foot(largest: float, contrast: Contrast | None) -> Image.Image:
    """The legend, and what makes the difference between two texts."""
    said = [] if contrast is None else sentences(contrast)
    made = Image.new("RGB", (_WIDTH, _SCALE + 18 * len(said) + _GAP), "white")
    draw = ImageDraw.Draw(made)
    for line, sentence in enumerate(said):
        _write(draw, (_GAP, 18 * line), sentence, 13, _WIDTH - 2 * _GAP)
    top, bar = 18 * len(said) + 4, legend(2 * SIDE + _GAP, 12)
    made.paste(bar, (_GAP, top))
    for share in (0, 0.5, 1):
        left = _GAP + share * (bar.width - 1)
        draw.line((left, top + 12, left, top + 15), _FAINT)
        anchor = {0: "la", 0.5: "ma", 1: "ra"}[share]
        number = f"{largest * of_scale(share):.2g}" if share else "0"
        draw.text((left, top + 16), number, _FAINT, _font(11), anchor)
    unit = "heat of a place; a word's places sum to its score"
    _write(draw, (2 * _GAP + bar.width, top - 1), unit, 11, _WIDTH // 2, _FAINT)
    draw.line((_GAP, made.height - _GAP // 2, _WIDTH - _GAP, made.height - _GAP // 2), _RULE)
    return made


def sentences(contrast: Contrast) -> list[str]:
    """What makes the difference between two texts, for people: one line a finding."""
    first, second = contrast.first, contrast.second
    lines = [
        f"{cut(first.text)!r} {first.score:.4f}, against {cut(second.text)!r} {second.score:.4f}: "
        f"difference {contrast.difference:+.4f}"
    ]
    decisive = contrast.decisive
    largest_first = sorted(contrast.changes, key=lambda change: -abs(change.difference))
    for it in largest_first[:_LISTED]:
        mark = ", which decides" if it is decisive else ""
        lines.append(f"    {in_words(it.words, it.others)}: {it.difference:+.4f}{mark}")
    if rest := largest_first[_LISTED:]:
        together = sum(it.difference for it in rest)
        lines.append(f"    {counted(len(rest), 'other change')}: {together:+.4f}")
    return lines


def in_words(words: Sequence[object], others: Sequence[object]) -> str:
    """Words of both texts that stand in each other's place."""
    mine, theirs = (
        " ".join(getattr(it, "text", str(it)) for it in side) for side in (words, others)
    )
    if mine.casefold() == theirs.casefold():
        return f"{mine!r} in both"
    if not mine or not theirs:
        return f"{mine or theirs!r} in the {'first' if mine else 'second'} text alone"
    return f"{mine!r} instead of {theirs!r}"


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    width: int,
    color: str = _TEXT,
) -> None:
    """Write a line, shortened in its middle where it is wider than its place."""
    font, shown = _font(size), " ".join(text.split())
    kept = len(shown)
    while kept > 4 and draw.textlength(shown, font) > width:
        kept -= max(1, kept // 8)
        line = " ".join(text.split())
        shown = f"{line[: kept // 2]}…{line[-(kept - kept // 2) :]}"
    draw.text(at, shown, color, font)
