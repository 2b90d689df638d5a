"""Tasks that the demonstration has never seen, to measure few-shot learning with.

Each task asks for the right one of four texts, given an image. Its words, forms of sentence, or
style of drawing are in no stage of pretraining (`scene.py`, `caption.py`, `render.py`). Images are
uint8 (64, 64, 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_trt.train.question import Question, shuffled
from dsd_trt.train.shapes.render import (
    PALETTE,
    Floats,
    Place,
    background,
    paint,
    shade,
    signed_distance,
)
from dsd_trt.train.shapes.scene import COLOURS, SHAPES

NEW_COLOURS = {  # RGB anchors in [0, 1]; a colour is a jittered mix of two of them
    "pink": ((1, 0.6, 0.75), (1, 0.75, 0.8), (0.95, 0.5, 0.7)),
    "brown": ((0.45, 0.25, 0.1), (0.55, 0.3, 0.15), (0.35, 0.2, 0.1)),
    "grey": ((0.5, 0.5, 0.5), (0.6, 0.6, 0.6), (0.4, 0.4, 0.42)),
    "turquoise": ((0.1, 0.8, 0.75), (0.25, 0.88, 0.82), (0, 0.7, 0.7)),
}
SYNONYMS = {"crimson": "red", "emerald": "green", "azure": "blue", "ivory": "white"}
NEW_SHAPES = ("hexagon", "heart", "crescent", "arrow", "diamond")
FILLINGS = ("striped", "dotted", "chequered", "plain")
NUMBERS = ("one", "two", "three", "four", "five")
_CORNERS = {
    "upper left": (0.2, 0.2),
    "upper right": (0.8, 0.2),
    "lower left": (0.2, 0.8),
    "lower right": (0.8, 0.8),
}
_SIZE = 64

# Pretraining and the other data sets use seeds that do not start with this number.
_PREFIX = int.from_bytes(b"unseen")

_Item = tuple[NDArray[np.uint8], str, list[str]]  # image, its text, three other texts


@dataclass(frozen=True)
class Figure:
    """One drawn thing.

    Attributes:
        shape: name of the shape, one of `SHAPES` or `NEW_SHAPES`.
        colour: RGB in [0, 1], FP32 (3,).
        place: centre and radius of the figure.
        filling: name of the filling, one of `FILLINGS`.
    """

    shape: str
    colour: Floats
    place: Place
    filling: str = "plain"


def unseen_questions(count: int, task: str, seed: int) -> Iterator[Question]:
    """Given an image, the right text of four; the kind is the task's name.

    Args:
        count: number of questions to yield.
        task: name of the task, one of `TASKS`.
        seed: random seed of images, texts and the right candidates' positions.
    """
    number = list(TASKS).index(task)
    for index in range(count):
        rng = np.random.default_rng([_PREFIX, number, seed, index])
        image, right, wrong = TASKS[task](rng)
        yield shuffled(
            task,
            (image, right),
            [(image, text) for text in wrong],
            f"scene {seed}-{index}",
            [_PREFIX, number, seed, index, 1],
        )


def _colours(rng: np.random.Generator) -> _Item:
    """A shape in a new colour: "a pink circle"."""
    colour, shape = _pick(rng, tuple(NEW_COLOURS)), _pick(rng, SHAPES)
    image = _draw([Figure(shape, _mix(rng, NEW_COLOURS[colour]), _lone(rng))], rng)
    return image, f"a {colour} {shape}", [f"a {c} {shape}" for c in NEW_COLOURS if c != colour]


def _synonyms(rng: np.random.Generator) -> _Item:
    """A known colour by a new word: "a crimson circle"."""
    word, shape = _pick(rng, tuple(SYNONYMS)), _pick(rng, SHAPES)
    image = _draw([Figure(shape, _mix(rng, PALETTE[SYNONYMS[word]]), _lone(rng))], rng)
    return image, _a(f"{word} {shape}"), [_a(f"{w} {shape}") for w in SYNONYMS if w != word]


def _shapes(rng: np.random.Generator) -> _Item:
    """A new shape in a known colour: "a red hexagon"."""
    shape, *others = _several(rng, NEW_SHAPES, 4)
    colour = _pick(rng, COLOURS)
    image = _draw([Figure(shape, _mix(rng, PALETTE[colour]), _lone(rng))], rng)
    return image, _a(f"{colour} {shape}"), [_a(f"{colour} {other}") for other in others]


def _counting(rng: np.random.Generator) -> _Item:
    """One to five equal things: "three stars"."""
    count, shape, colour = int(rng.integers(1, 6)), _pick(rng, SHAPES), _pick(rng, COLOURS)
    texts = [
        f"{word} {_plural(shape) if n > 1 else shape}" for n, word in enumerate(NUMBERS, start=1)
    ]
    places = _scattered(rng, [float(r) for r in rng.uniform(0.08, 0.14, count)])
    image = _draw([Figure(shape, _mix(rng, PALETTE[colour]), place) for place in places], rng)
    right = texts.pop(count - 1)
    return image, right, _several(rng, texts, 3)


def _fillings(rng: np.random.Generator) -> _Item:
    """A filling: "a striped red circle"."""
    filling, shape, colour = _pick(rng, FILLINGS), _pick(rng, SHAPES), _pick(rng, COLOURS)
    x, y = rng.uniform(0.35, 0.65, 2)
    place = Place(float(x), float(y), float(rng.uniform(0.25, 0.35)))
    image = _draw([Figure(shape, _mix(rng, PALETTE[colour]), place, filling)], rng)
    text = f"a {filling} {colour} {shape}"
    return image, text, [f"a {other} {colour} {shape}" for other in FILLINGS if other != filling]


def _touching(rng: np.random.Generator) -> _Item:
    """Two things that touch or do not: "a red circle touching a blue square"."""
    shapes, colours = _several(rng, SHAPES, 2), _several(rng, COLOURS, 2)
    touching = bool(rng.random() < 0.5)
    while True:
        first, second = rng.uniform(0.13, 0.2, 2)
        x, y, turn = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8), rng.uniform(0, 2 * math.pi)
        reach = (0.8 if touching else rng.uniform(1.4, 2.2)) * (first + second)
        far = (x + reach * math.cos(turn), y + reach * math.sin(turn))
        if all(second < c < 1 - second for c in far):
            break
    places = [Place(x, y, first), Place(*far, second)]
    image = _draw(_figures(rng, shapes, colours, places), rng)
    names = [f"{c} {s}" for c, s in zip(colours, shapes, strict=True)]
    crossed = [f"{c} {s}" for c, s in zip(colours[::-1], shapes, strict=True)]
    word, other = ("touching", "away from")[:: 1 if touching else -1]
    right, *wrong = (f"{_a(a)} {how} {_a(b)}" for a, b in (names, crossed) for how in (word, other))
    return image, right, wrong


def _larger(rng: np.random.Generator) -> _Item:
    """The larger of two things: "the larger one is the red circle"."""
    shapes, colours = _several(rng, SHAPES, 2), _several(rng, COLOURS, 2)
    places = _scattered(rng, [float(rng.uniform(0.2, 0.25)), float(rng.uniform(0.09, 0.13))])
    image = _draw(_figures(rng, shapes, colours, places), rng)
    names = [f"{c} {s}" for c in colours for s in shapes]  # the first is the larger one
    right, *wrong = (f"the larger one is the {name}" for name in names)
    return image, right, wrong


def _style(rng: np.random.Generator) -> _Item:
    """Outlines on a textured, noisy background, in known words: "a red circle"."""
    shapes, colours = _several(rng, SHAPES, 2), _several(rng, COLOURS, 2)
    colour = _mix(rng, PALETTE[colours[0]])
    image = _draw([Figure(shapes[0], colour, _lone(rng))], rng, sketched=True)
    right, *wrong = (_a(f"{c} {s}") for c in colours for s in shapes)
    return image, right, wrong


def _sentences(rng: np.random.Generator) -> _Item:
    """A new form of sentence: "circle: red. star: blue"."""
    shapes, colours = _several(rng, SHAPES, 2), _several(rng, COLOURS, 3)
    places = _scattered(rng, [float(r) for r in rng.uniform(0.15, 0.22, 2)])
    image = _draw(_figures(rng, shapes, colours[:2], places), rng)
    first, second, absent = colours
    pairs = [(first, second), (second, first), (absent, second), (first, absent)]
    right, *wrong = (
        f"whatever is {a} has the form {shapes[0]} whereas {shapes[1]} comes in {b}"
        for a, b in pairs
    )
    return image, right, wrong


def _corners(rng: np.random.Generator) -> _Item:
    """A corner: "a red circle, upper left corner"."""
    corner, shape, colour = _pick(rng, tuple(_CORNERS)), _pick(rng, SHAPES), _pick(rng, COLOURS)
    x, y = rng.normal(_CORNERS[corner], 0.03)
    place = Place(float(x), float(y), float(rng.uniform(0.1, 0.16)))
    image = _draw([Figure(shape, _mix(rng, PALETTE[colour]), place)], rng)
    right = _a(f"{colour} {shape}, {corner} corner")
    wrong = [_a(f"{colour} {shape}, {other} corner") for other in _CORNERS if other != corner]
    return image, right, wrong


TASKS: dict[str, Callable[[np.random.Generator], _Item]] = {
    "colours": _colours,
    "shapes": _shapes,
    "counting": _counting,
    "touching": _touching,
    "sentences": _sentences,
    "synonyms": _synonyms,
    "fillings": _fillings,
    "larger": _larger,
    "style": _style,
    "corners": _corners,
}
"""Drawing functions of the tasks, by name; a task's index is part of its random seeds."""


def _draw(
    figures: Sequence[Figure], rng: np.random.Generator, *, sketched: bool = False
) -> NDArray[np.uint8]:
    """Draw figures on a background; `sketched` draws contours alone, on grain."""
    y, x = np.mgrid[0:_SIZE, 0:_SIZE].astype(np.float32)
    x, y = (x + 0.5) / _SIZE, (y + 0.5) / _SIZE
    softness = np.float32(rng.uniform(0.4, 1.3) / _SIZE)
    while True:  # a background on which every colour shows
        image = background(rng, x, y)
        if all(np.abs(image - figure.colour).max(axis=2).min() > 0.2 for figure in figures):
            break
    if sketched:
        grain = rng.normal(0, 0.1, (_SIZE // 2, _SIZE // 2, 1)).astype(np.float32)
        image = image + np.kron(grain, np.ones((2, 2, 1), np.float32))
    for figure in figures:
        distance = distance_to(figure.shape, x, y, figure.place, rng)
        if sketched:
            distance = np.abs(distance + 0.03) - np.float32(0.03)
        colour = shade(figure.colour, x, y, figure.place, rng)
        if figure.filling != "plain":
            other = np.float32(0.1 if figure.colour.mean() > 0.5 else 0.9) + np.zeros(3, np.float32)
            amount = _pattern(figure.filling, x, y, rng)[..., None]
            colour = colour * (1 - amount) + other * amount
        image = paint(image, distance, colour, softness)
    if rng.random() < 0.3:
        image = image + rng.normal(0, rng.uniform(0.005, 0.04), image.shape).astype(np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def distance_to(shape: str, x: Floats, y: Floats, place: Place, rng: np.random.Generator) -> Floats:
    """Signed distance to a known or new shape's outline, see `signed_distance`."""
    if shape in SHAPES:
        return signed_distance(shape, x, y, place, rng)
    tilt, r = rng.uniform(-0.3, 0.3), place.radius
    u, v = x - place.x, y - place.y
    u, v = u * math.cos(tilt) + v * math.sin(tilt), -u * math.sin(tilt) + v * math.cos(tilt)
    u, v = u / r, v / r
    if shape == "hexagon":
        turns = np.arange(6) * math.pi / 3
        return r * _polygon(u, v, np.stack([np.cos(turns), np.sin(turns)], axis=1))
    if shape == "diamond":
        return r * _polygon(u, v, np.array([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)]))
    if shape == "arrow":  # to the right
        half = [(-1, -0.22), (0.1, -0.22), (0.1, -0.7), (1, 0)]
        return r * _polygon(u, v, np.array([*half, *((a, -b) for a, b in half[-2::-1])]))
    if shape == "crescent":
        hole = 0.85 - np.hypot(u - 0.5, v)
        return np.maximum(np.hypot(u, v) - 1, hole) * r
    # A heart: the lower corner of a square, with a circle on each of its two upper sides.
    lobes = np.hypot(np.abs(u) - 0.42, v + 0.3) - 0.47
    corner = _polygon(u, v, np.array([(-0.84, -0.08), (0, -0.28), (0.84, -0.08), (0, 0.95)]))
    return np.minimum(lobes, corner) * r


def _polygon(u: Floats, v: Floats, corners: NDArray[np.float64]) -> Floats:
    """Signed distance to a polygon's outline, negative inside, (size, size)."""
    nearest = np.full(u.shape, np.inf)
    inside = np.zeros(u.shape, dtype=np.bool_)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        dx, dy = bx - ax, by - ay
        along = np.clip(((u - ax) * dx + (v - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, np.hypot(u - ax - along * dx, v - ay - along * dy))
        if dy:
            inside ^= ((ay > v) != (by > v)) & (u < ax + (v - ay) * dx / dy)
    return np.where(inside, -nearest, nearest).astype(np.float32)


def _pattern(filling: str, x: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    """1 where a filling shows its second colour, (size, size)."""
    turn = rng.uniform(0, math.pi) if filling == "striped" else rng.uniform(-0.3, 0.3)
    u = (x * math.cos(turn) + y * math.sin(turn)) * rng.uniform(7, 10) + rng.random()
    v = (-x * math.sin(turn) + y * math.cos(turn)) * rng.uniform(7, 10) + rng.random()
    if filling == "striped":
        return (u % 1 < 0.45).astype(np.float32)
    if filling == "dotted":
        return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.28).astype(np.float32)
    return ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)


def _figures(
    rng: np.random.Generator,
    shapes: Sequence[str],
    colours: Sequence[str],
    places: Sequence[Place],
) -> list[Figure]:
    return [
        Figure(shape, _mix(rng, PALETTE[colour]), place)
        for shape, colour, place in zip(shapes, colours, places, strict=True)
    ]


def _lone(rng: np.random.Generator) -> Place:
    radius = float(rng.uniform(0.15, 0.35))
    x, y = rng.uniform(radius, 1 - radius, 2)
    return Place(float(x), float(y), radius)


def _scattered(rng: np.random.Generator, radii: Sequence[float]) -> list[Place]:
    """Places of things that lie inside the image and do not touch, by rejection."""
    while True:
        centres = [rng.uniform(r, 1 - r, 2) for r in radii]
        places = [Place(float(x), float(y), r) for (x, y), r in zip(centres, radii, strict=True)]
        if all(
            math.hypot(a.x - b.x, a.y - b.y) > 1.1 * (a.radius + b.radius)
            for i, a in enumerate(places)
            for b in places[:i]
        ):
            return places


def _mix(rng: np.random.Generator, anchors: Sequence[tuple[float, float, float]]) -> Floats:
    i, j = rng.integers(len(anchors), size=2)
    share = rng.random()
    mixed = np.array(anchors[i]) * share + np.array(anchors[j]) * (1 - share)
    return np.clip(mixed + rng.normal(0, 0.02, 3), 0, 1).astype(np.float32)


def _several(rng: np.random.Generator, words: Sequence[str], count: int) -> list[str]:
    return [str(word) for word in rng.choice(words, count, replace=False)]


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return str(words[int(rng.integers(len(words)))])


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")
