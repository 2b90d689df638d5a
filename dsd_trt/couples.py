"""Drawn scenes in couples whose captions differ in one word, for comparing engines.

Among such scenes the second best text or image comes close, as it does in real use. Among unrelated
ones it does not, and comparing their order would measure little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_COLOURS = ("red", "blue", "green", "yellow", "white", "orange", "purple", "black")
_SHAPES = ("circle", "square", "triangle")
_GROUNDS = ("grey", "beige", "navy", "pink")
_WORDS = ("first colour", "second shape", "side", "first shape", "second colour")


@dataclass(frozen=True)
class Drawing:
    """A scene of two things side by side, and its caption.

    Attributes:
        pixels: the image, RGB, uint8 (side, side, 3).
        caption: text that describes the image.
    """

    pixels: NDArray[np.uint8]
    caption: str


@dataclass(frozen=True)
class _Things:
    """Colour and shape of two things, and on which side of the second the first one is."""

    first: tuple[str, str]
    second: tuple[str, str]
    side: str

    @property
    def caption(self) -> str:
        first, second = (" ".join(it) for it in (self.first, self.second))
        return f"a {first} to the {self.side} of a {second}"


def draw_couples(count: int, side: int, rng: np.random.Generator) -> list[Drawing]:
    """Draw scenes in couples: 2 `count` scenes, of which no two have the same caption.

    One couple differs in a colour, the next in a shape or the side, and in nothing else.

    Args:
        count: number of couples; twice as many scenes are drawn.
        side: height and width of the images, in pixels.
        rng: random generator of the scenes.
    """
    drawn = list[Drawing]()
    captions = set[str]()
    while len(drawn) < 2 * count:
        things = _sample(rng)
        other = _with_another(things, _WORDS[len(drawn) // 2 % len(_WORDS)], rng)
        if captions & {things.caption, other.caption}:
            continue
        captions |= {things.caption, other.caption}
        ground = str(rng.choice(_GROUNDS))
        # (2, 3): half the size of both things, and where their centres lie; in parts of the side
        places = rng.uniform((0.1, 0.2, 0.3), (0.24, 0.3, 0.7), (2, 3))
        drawn += [Drawing(_draw(it, ground, places, side), it.caption) for it in (things, other)]
    return drawn


def _sample(rng: np.random.Generator) -> _Things:
    while True:
        first, second = ((str(rng.choice(_COLOURS)), str(rng.choice(_SHAPES))) for _ in range(2))
        if first != second:  # or the side would say nothing
            return _Things(first, second, str(rng.choice(["left", "right"])))


def _with_another(things: _Things, word: str, rng: np.random.Generator) -> _Things:
    """The things of another scene, whose caption differs in one word."""
    if word == "side":
        return replace(things, side="left" if things.side == "right" else "right")
    which, part = word.split()
    changed, kept = things.first, things.second
    if which == "second":
        changed, kept = kept, changed
    while True:
        colour, shape = changed
        if part == "colour":
            colour = str(rng.choice([it for it in _COLOURS if it != colour]))
        else:
            shape = str(rng.choice([it for it in _SHAPES if it != shape]))
        if (colour, shape) != kept:
            break
    if which == "first":
        return replace(things, first=(colour, shape))
    return replace(things, second=(colour, shape))


def _draw(
    things: _Things, ground: str, places: NDArray[np.float64], side: int
) -> NDArray[np.uint8]:
    picture = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(picture)
    halves = (0, side / 2) if things.side == "left" else (side / 2, 0)
    for left, (colour, shape), place in zip(
        halves, (things.first, things.second), side * places, strict=True
    ):
        radius, x, y = place[0], left + place[1], place[2]
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "square":
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon((box[0], box[3], x, box[1], box[2], box[3]), fill=colour)
    return np.asarray(picture)
