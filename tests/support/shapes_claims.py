"""Check a caption's claims against a drawing, from words and pixels alone.

It shares no tables with the generator. It has its own grammar for captions, hues for colours, and
centroids and extents of visible pixels for sizes and relations.
"""

from __future__ import annotations

import colorsys
import itertools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

COLOUR_WORDS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SHAPE_WORDS = ("circle", "square", "triangle", "star", "cross", "ring")
# Hues of six CSS colour names, in degrees.
HUES = {"red": 0, "orange": 39, "yellow": 60, "green": 120, "blue": 240, "purple": 300}
LARGE = 0.16  # least reach of a large thing, as a share of the image's side

_THING = re.compile(
    rf"\b(an?|the) (?:(small|large) )?({'|'.join(COLOUR_WORDS)}) ({'|'.join(SHAPE_WORDS)})\b"
)
_OPENING = re.compile(
    r"^(there is|this is|we see|an? (picture|image|photo|drawing) of|an image with) "
)
_RELATION_WORDS = {
    "left of": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
    "inside": ("inside", "inside of", "within", "in"),
    "in front of": ("in front of", "overlapping"),
}
_SIDE_WORDS = {
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "on top"),
    "bottom": ("at the bottom", "on the bottom"),
}
_RELATION_OF = {word: name for name, words in _RELATION_WORDS.items() for word in words}
_SIDE_OF = {word: name for name, words in _SIDE_WORDS.items() for word in words}


@dataclass(frozen=True)
class Claims:
    """Claims of a caption.

    Attributes:
        things: size (or None), colour and shape of each named thing; a relation's subject comes
            first and its object second.
        relation: relation of the first thing to the second; None if none is claimed.
        side: side of the image at which the only thing stands; None if none is claimed.
    """

    things: tuple[tuple[str | None, str, str], ...]
    relation: str | None = None
    side: str | None = None


def read(caption: str) -> Claims:
    """Parse a caption completely.

    Raises:
        ValueError: a word does not fit the grammar; the message names it.
    """
    text = caption.lower().removesuffix(".")
    text = _OPENING.sub("", text)
    found = list(_THING.finditer(text))
    named = [(m[2], m[3], m[4]) for m in found]
    edges = [0, *itertools.chain(*(m.span() for m in found)), len(text)]
    before, *between, after = (
        text[a:b].strip() for a, b in zip(edges[::2], edges[1::2], strict=True)
    )
    if any((m[1] == "an") != ((m[2] or m[3])[0] in "aeiou") for m in found if m[1] != "the"):
        raise ValueError(f"wrong article in {caption!r}")
    if len(named) == 1 and not before:
        if not after:
            return Claims(tuple(named))
        if after in _SIDE_OF:
            return Claims(tuple(named), side=_SIDE_OF[after])
    elif len(named) > 1 and not after:
        first, *rest = between
        listed = all(word in ("and", ", with") for word in rest)
        if not before and first in (",", "and") and all(word in (",", "and") for word in rest):
            return Claims(tuple(named))
        if before in _RELATION_OF and first in ("is", "there is") and listed:
            named[:2] = named[1::-1]
            return Claims(tuple(named), _RELATION_OF[before])
        bare = re.sub(r"^(is placed|is|sits|lies|stands) ", "", first)
        if not before and bare in _RELATION_OF and listed:
            return Claims(tuple(named), _RELATION_OF[bare])
    raise ValueError(f"cannot read {caption!r}")


def colour_name(rgb: NDArray[np.floating]) -> str:
    """The nearest of the eight colour names: by hue, or white or black if unsaturated."""
    red, green, blue = (float(c) / 255 for c in rgb)
    if max(red, green, blue) - min(red, green, blue) < 0.25:
        return "white" if red + green + blue > 1.5 else "black"
    hue = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
    return min(HUES, key=lambda name: min(abs(hue - HUES[name]), 360 - abs(hue - HUES[name])))


def shape_name(mask: Mask) -> str:
    """Name of a mask's shape, from the outline's distance to the centroid.

    A ring does not cover its centroid, and a circle's distance is constant. For other shapes the
    largest Fourier component gives the number of corners. A cross is cut deeper than a square.
    """
    y, x = np.nonzero(mask)
    if not mask[round(y.mean()), round(x.mean())]:
        return "ring"
    sector = np.floor(np.arctan2(y - y.mean(), x - x.mean()) / (2 * np.pi) * 72).astype(int)
    outline = np.zeros(72)
    np.maximum.at(outline, sector % 72, np.hypot(x - x.mean(), y - y.mean()))
    depth = outline.min() / outline.max()
    if depth > 0.9:
        return "circle"
    corners = 3 + int(np.abs(np.fft.rfft(outline))[3:6].argmax())
    if corners == 4:
        return "square" if depth > 0.6 else "cross"
    return {3: "triangle", 5: "star"}[corners]


def center(mask: Mask) -> NDArray[np.floating]:
    """Centroid (x, y) of a mask, in shares of the image's side."""
    y, x = np.nonzero(mask)
    return (np.array([x.mean(), y.mean()]) + 0.5) / len(mask)


def reach(mask: Mask) -> float:
    """Distance from the centroid to the farthest pixel, in shares of the image's side."""
    y, x = np.nonzero(mask)
    return float(np.hypot(x - x.mean(), y - y.mean()).max()) / len(mask)


def holds(relation: str, first: Mask, second: Mask) -> bool:
    """Whether a relation holds between the visible pixels of two things."""
    dx, dy = center(first) - center(second)
    if relation == "inside":
        return bool(first[_box(second)].sum() >= 0.97 * first.sum()) and reach(first) < reach(
            second
        )
    if relation == "in front of":
        # The outline of what is in front cuts into the other: they touch, and it is whole.
        grown = first.copy()
        for axis, step in itertools.product((0, 1), (-1, 1)):
            grown |= np.roll(first, step, axis)
        return bool((grown & second).any())
    return {
        "left of": -dx > max(0.1, abs(dy)),
        "right of": dx > max(0.1, abs(dy)),
        "above": -dy > max(0.1, abs(dx)),
        "below": dy > max(0.1, abs(dx)),
    }[relation]


def stands(side: str, mask: Mask) -> bool:
    """Whether a thing stands in the outer 40 % of the image on one side."""
    x, y = center(mask)
    return bool({"left": x < 0.4, "right": x > 0.6, "top": y < 0.4, "bottom": y > 0.6}[side])


def _box(mask: Mask) -> tuple[slice, slice]:
    y, x = np.nonzero(mask)
    return slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)
