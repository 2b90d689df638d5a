"""Coloured shapes on simple backgrounds, drawn with Pillow, for examples and tests.

Lengths are in units of the image's side; x grows to the right, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw

SIDE = 256  # pixels
_FINER = 4  # factor by which outlines are drawn larger, then averaged for antialiasing

RGB = tuple[int, int, int]

# Radii of the largest disk inside a shape (for the ring, inside its hole) and of the smallest disk
# around it, both about its centre, for a thing of radius 1.
INNER_RADIUS = {
    "circle": 1.0,
    "square": 0.88,
    "triangle": 0.6,
    "star": 0.53,
    "cross": 0.45,
    "ring": 0.62,
}
OUTER_RADIUS = {
    "circle": 1.0,
    "square": 1.25,
    "triangle": 1.2,
    "star": 1.15,
    "cross": 1.06,
    "ring": 1.0,
}
SHAPES = tuple(INNER_RADIUS)
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")


@dataclass(frozen=True)
class Thing:
    """A shape with its place in an image.

    Attributes:
        shape: name of the shape, one of `SHAPES`.
        colour: name of a CSS colour.
        x: horizontal position of the centre, in [0, 1].
        y: vertical position of the centre, in [0, 1].
        radius: about half the shape's width.
        angle: clockwise rotation in degrees.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float = 0.0


def draw(things: Sequence[Thing], background: Image.Image) -> Image.Image:
    """Draw things on a background, later ones in front; RGB, `SIDE` x `SIDE`."""
    picture = background.copy()
    for thing in things:
        coverage = outline(thing, _FINER * SIDE).reduce(_FINER)
        picture.paste(ImageColor.getrgb(thing.colour), mask=coverage)
    return picture


def outline(thing: Thing, side: int) -> Image.Image:
    """Mask of a thing in an image of `side` x `side` pixels: 255 on it, 0 elsewhere."""
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    if thing.shape in ("circle", "ring"):
        pen.ellipse(_box(thing, 1.0, side), fill=255)
        if thing.shape == "ring":
            pen.ellipse(_box(thing, INNER_RADIUS["ring"], side), fill=0)
    else:
        pen.polygon(_corners(thing, side), fill=255)
    return mask


def plain(colour: str | RGB) -> Image.Image:
    """A background of one colour."""
    return Image.new("RGB", (SIDE, SIDE), colour)


def gradient(start: str | RGB, end: str | RGB, angle: float = 90.0) -> Image.Image:
    """A background that changes in one direction: 0 degrees is rightwards, 90 downwards."""
    across = np.linspace(-0.5, 0.5, SIDE)
    direction = math.radians(angle)
    along = across[None, :] * math.cos(direction) + across[:, None] * math.sin(direction)
    share = ((along - along.min()) / np.ptp(along))[:, :, None]  # (SIDE, SIDE, 1), from 0 to 1
    return _to_image((1 - share) * np.array(_rgb(start)) + share * np.array(_rgb(end)))


def noisy(
    colour: str | RGB, rng: np.random.Generator, *, spread: float = 14.0, grain: int = 4
) -> Image.Image:
    """A background of one colour, with noise in blocks of `grain` pixels."""
    blocks = -(-SIDE // grain)
    noise = rng.normal(0.0, spread, (blocks, blocks, 1)) + rng.normal(0.0, spread / 3, (1, 1, 3))
    fine = noise.repeat(grain, axis=0).repeat(grain, axis=1)[:SIDE, :SIDE]
    return _to_image(np.array(_rgb(colour)) + fine)


def _corners(thing: Thing, side: int) -> list[tuple[float, float]]:
    """Corner points of a polygon, in pixels."""
    turn = complex(math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle)))
    center = complex(thing.x, thing.y)
    corners = (center + thing.radius * turn * corner for corner in _POLYGONS[thing.shape])
    return [(corner.real * side, corner.imag * side) for corner in corners]


def _box(thing: Thing, share: float, side: int) -> tuple[float, float, float, float]:
    x, y, radius = side * thing.x, side * thing.y, side * share * thing.radius
    return x - radius, y - radius, x + radius, y + radius


def _spokes(count: int, radii: Sequence[float]) -> list[complex]:
    """Points around the centre, clockwise from the top, with the given radii in turn."""
    angles = [2 * math.pi * k / count for k in range(count)]
    return [
        radii[k % len(radii)] * complex(math.sin(angle), -math.cos(angle))
        for k, angle in enumerate(angles)
    ]


def _plus(arm: float, half_width: float) -> list[complex]:
    quarter = [
        complex(-half_width, -arm),
        complex(half_width, -arm),
        complex(half_width, -half_width),
    ]
    return [point * 1j**turns for turns in range(4) for point in quarter]


_POLYGONS = {
    "square": [
        complex(x, y) for x, y in ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88))
    ],
    "triangle": _spokes(3, [OUTER_RADIUS["triangle"]]),
    "star": _spokes(10, [OUTER_RADIUS["star"], 0.46 * OUTER_RADIUS["star"]]),
    "cross": _plus(1.0, 0.33),
}


def _rgb(colour: str | RGB) -> RGB:
    red, green, blue = (ImageColor.getrgb(colour) if isinstance(colour, str) else colour)[:3]
    return red, green, blue


def _to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
