"""Scenes, captions and questions that are independent of the training data's generator.

Nothing here comes from `train/shapes`. Images are drawn with Pillow by `examples/drawing.py`;
layout and captions are written below. A model that only knows its generator's style of drawing and
wording fails here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from drawing import (
    COLOURS,
    INNER_RADIUS,
    OUTER_RADIUS,
    SHAPES,
    Thing,
    draw,
    gradient,
    noisy,
    outline,
    plain,
)

DIRECTIONS = {"left of": 180, "right of": 0, "above": 270, "below": 90}  # degrees, y downwards
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = (*DIRECTIONS, "inside", "in front of")
PARTS = ("subject", "object", "predicate")

_RADII = {"small": (0.09, 0.12), "large": (0.20, 0.25), "": (0.12, 0.19)}
_MARGIN = 0.02  # between a thing and the image's edge, as a share of its side
_COARSE = 64  # side in pixels of the masks on which overlap is measured
_PHRASES = {
    "left of": ("to the left of", "left of", "to the left of"),
    "right of": ("to the right of", "right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
    "inside": ("inside",),
    "in front of": ("in front of",),
}


class DoesNotFitError(Exception):
    """A layout that breaks a rule, so that another one has to be tried."""


@dataclass(frozen=True)
class Noun:
    """Size, colour and shape of a thing without a position; `size` may be empty."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Scene:
    """One to three nouns; `relation` holds between the first two, or is empty."""

    nouns: tuple[Noun, ...]
    relation: str = ""


@dataclass(frozen=True)
class ImageChoice:
    """A question: which of two images does the text describe?

    Attributes:
        text: caption that is true of `right` only.
        right: image of the captioned scene.
        wrong: image of the scene with one part changed.
        relation: relation that the text states.
        part: changed part of the scene: "subject", "object" or "predicate".
    """

    text: str
    right: Image.Image
    wrong: Image.Image
    relation: str
    part: str


@dataclass(frozen=True)
class TextChoice:
    """A question: which of ten texts describes the image? `texts[right]` is the answer."""

    image: Image.Image
    texts: tuple[str, ...]
    right: int


def image_choices(count: int, seed: int) -> Iterator[ImageChoice]:
    """Questions that go through all relations and changed parts in turn."""
    kinds = cycle((relation, part) for relation in RELATIONS for part in PARTS)
    for index, (relation, part) in enumerate(islice(kinds, count)):
        rng = np.random.default_rng([seed, 0, index])
        scene = sample_scene(rng, relation)
        changed = change(scene, part, rng)
        text = caption(scene, rng)
        yield ImageChoice(text, render(scene, rng), render(changed, rng), relation, part)


def text_choices(count: int, seed: int, texts: int = 10) -> Iterator[TextChoice]:
    """Questions on scenes of one to three things; wrong texts name a thing the image lacks."""
    rng = np.random.default_rng([seed, 1])
    scenes = [sample_scene(rng) for _ in range(max(count, 20 * texts))]
    for scene in scenes[:count]:
        others = [other for other in scenes if not _could_be(other, scene)]
        chosen = rng.choice(len(others), texts - 1, replace=False)
        captions = [caption(others[i], rng, whole=True) for i in chosen]
        right = int(rng.integers(texts))
        captions.insert(right, caption(scene, rng, whole=True))
        yield TextChoice(render(scene, rng), tuple(captions), right)


def sample_scene(rng: np.random.Generator, relation: str | None = None) -> Scene:
    """Draw a random scene in which no two things share a colour or a shape.

    Args:
        rng: source of all random choices.
        relation: relation between the first two things; None draws it and the number of things.
    """
    if relation is None:
        count = int(rng.choice([1, 2, 3], p=[0.2, 0.5, 0.3]))
        relation = str(rng.choice(["", *RELATIONS])) if count > 1 else ""
    else:
        count = int(rng.choice([2, 3], p=[0.7, 0.3]))
    shapes = rng.choice(SHAPES, count, replace=False)
    colours = rng.choice(COLOURS, count, replace=False)
    sizes = rng.choice(["", "", "small", "large"], count)
    if relation == "inside":  # a small thing in a large one, even if the caption omits the sizes
        sizes[0] = rng.choice(["", "small"])
        sizes[1] = rng.choice(["", "large"])
    nouns = (Noun(*map(str, words)) for words in zip(sizes, colours, shapes, strict=True))
    return Scene(tuple(nouns), relation)


def change(scene: Scene, part: str, rng: np.random.Generator) -> Scene:
    """Change a scene's subject, object or predicate, so that its caption becomes false.

    A thing gets a new colour, a new shape, or both, which no thing of the scene has.
    """
    if part == "predicate":
        if scene.relation in OPPOSITES:
            return replace(scene, relation=OPPOSITES[scene.relation])
        others = [relation for relation in RELATIONS if relation != scene.relation]
        nouns = tuple(replace(noun, size="") for noun in scene.nouns)  # sizes may not fit both
        return Scene(nouns, str(rng.choice(others)))
    place = PARTS.index(part)
    noun = scene.nouns[place]
    what = rng.choice(["colour", "shape", "both"])
    if what != "shape":
        free = [colour for colour in COLOURS if all(colour != it.colour for it in scene.nouns)]
        noun = replace(noun, colour=str(rng.choice(free)))
    if what != "colour":
        unused = [shape for shape in SHAPES if all(shape != it.shape for it in scene.nouns)]
        noun = replace(noun, shape=str(rng.choice(unused)))
    nouns = (*scene.nouns[:place], noun, *scene.nouns[place + 1 :])
    return replace(scene, nouns=nouns)


def caption(scene: Scene, rng: np.random.Generator, *, whole: bool = False) -> str:
    """Write a caption of a scene; unless `whole`, it may omit a third thing."""
    names = [_with_article(str(noun)) for noun in scene.nouns]
    if not scene.relation:
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        start = str(rng.choice(["", "", "there is ", "a picture of "]))
        return start + listed
    phrase = str(rng.choice(_PHRASES[scene.relation]))
    subject, object_, *rest = names
    bare = str(scene.nouns[0])
    sentence = str(
        rng.choice(
            [
                f"{subject} {phrase} {object_}",
                f"{subject} {phrase} {object_}",
                f"the {bare} is {phrase} {object_}",
                f"the {bare} is {phrase} the {scene.nouns[1]}",
                f"there is {subject} {phrase} {object_}",
                f"a picture of {subject} {phrase} {object_}",
            ]
        )
    )
    if rest and (whole or rng.random() < 0.5):
        sentence += str(rng.choice([f", and {rest[0]}", f", with {rest[0]}"]))
    return sentence


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw a scene of 256 x 256 pixels; what the nouns leave open is random."""
    things = lay_out(scene, rng)
    # What is in front is drawn last. Other things do not overlap, or the subject is inside.
    order = [things[1], things[0], *things[2:]] if len(things) > 1 else things
    return draw(order, _background(things, rng))


def lay_out(scene: Scene, rng: np.random.Generator) -> list[Thing]:
    """Choose positions and sizes of a scene's things, in the order of its nouns."""
    while True:
        try:
            return _try_layout(scene, rng)
        except DoesNotFitError:
            continue


def _try_layout(scene: Scene, rng: np.random.Generator) -> list[Thing]:
    scale = {1: 1.3, 2: 1.0, 3: 0.85}[len(scene.nouns)]
    things = [_loose(noun, scale, rng) for noun in scene.nouns]
    placed: list[Thing] = []
    if scene.relation:
        placed = _into_picture(_related(things[0], things[1], scene.relation, rng), rng)
    for thing in things[len(placed) :]:
        placed.append(_anywhere(thing, placed, rng))
    return placed


def _loose(noun: Noun, scale: float, rng: np.random.Generator) -> Thing:
    """A thing of random size whose position is not chosen yet."""
    radius = scale * rng.uniform(*_RADII[noun.size])
    turn = rng.choice([0.0, rng.uniform(-18, 18)])
    return Thing(noun.shape, noun.colour, 0.5, 0.5, radius, turn)


def _related(
    subject: Thing, object_: Thing, relation: str, rng: np.random.Generator
) -> list[Thing]:
    """Place two things so that their relation holds."""
    if relation in DIRECTIONS:
        distance = _reach(subject) + _reach(object_) + rng.uniform(0.02, 0.25)
        angle = DIRECTIONS[relation] + rng.uniform(-28, 28)
        return [_moved(subject, object_, distance, angle), object_]
    angle = rng.uniform(0, 360)
    if relation == "inside":
        object_ = replace(object_, radius=max(object_.radius, rng.uniform(0.23, 0.34)))
        room = 0.92 * object_.radius * INNER_RADIUS[object_.shape]
        radius = min(subject.radius, 0.12, 0.95 * room / OUTER_RADIUS[subject.shape])
        subject = replace(subject, radius=radius)
        distance = rng.uniform(0, room - _reach(subject))
        return [_moved(subject, object_, distance, angle), object_]
    distance = rng.uniform(0.5, 1.2) * max(subject.radius, object_.radius)
    subject = _moved(subject, object_, distance, angle)
    front, back = (np.asarray(outline(thing, _COARSE)) > 0 for thing in (subject, object_))
    shared = np.count_nonzero(front & back) / min(front.sum(), back.sum())
    if not 0.25 < shared < 0.65:  # neither hidden, nor merely touched, nor inside
        raise DoesNotFitError
    return [subject, object_]


def _moved(thing: Thing, origin: Thing, distance: float, angle: float) -> Thing:
    x = origin.x + distance * math.cos(math.radians(angle))
    y = origin.y + distance * math.sin(math.radians(angle))
    return replace(thing, x=x, y=y)


def _into_picture(things: list[Thing], rng: np.random.Generator) -> list[Thing]:
    """Move all things together, and shrink them a little if necessary, to fit the image."""
    spans = [
        (
            min(getattr(thing, axis) - _reach(thing) for thing in things),
            max(getattr(thing, axis) + _reach(thing) for thing in things),
        )
        for axis in "xy"
    ]
    room = 1 - 2 * _MARGIN
    scale = min(1.0, *(room / (high - low) for low, high in spans))
    if scale < 0.75:
        raise DoesNotFitError
    left, top = (_MARGIN + rng.uniform() * (room - scale * (high - low)) for low, high in spans)
    (x, _), (y, _) = spans
    return [
        replace(
            thing,
            x=left + scale * (thing.x - x),
            y=top + scale * (thing.y - y),
            radius=scale * thing.radius,
        )
        for thing in things
    ]


def _anywhere(thing: Thing, placed: list[Thing], rng: np.random.Generator) -> Thing:
    """Place a thing at a distance from those placed before."""
    for _ in range(50):
        thing = _into_picture([thing], rng)[0]
        if all(_gap(thing, other) > 0.015 for other in placed):
            return thing
    raise DoesNotFitError


def _gap(thing: Thing, other: Thing) -> float:
    apart = math.hypot(thing.x - other.x, thing.y - other.y)
    return apart - _reach(thing) - _reach(other)


def _reach(thing: Thing) -> float:
    return thing.radius * OUTER_RADIUS[thing.shape]


def _background(things: list[Thing], rng: np.random.Generator) -> Image.Image:
    """A plain, gradient or noisy background, in colours that no thing has."""
    used = [ImageColor.getrgb(thing.colour) for thing in things]
    first, second = (_color_apart(used, rng) for _ in range(2))
    kind = rng.choice(["plain", "gradient", "noisy"])
    if kind == "plain":
        return plain(first)
    if kind == "gradient":
        mixed = tuple((a + b) // 2 for a, b in zip(first, second, strict=True))
        if _distance(mixed, used) < 90:  # type: ignore[arg-type]
            return plain(first)
        return gradient(first, second, rng.uniform(0, 360))
    return noisy(first, rng, spread=rng.uniform(4, 16), grain=int(rng.choice([1, 4, 8])))


def _color_apart(used: Sequence[tuple[int, ...]], rng: np.random.Generator) -> tuple[int, int, int]:
    while True:
        grey = rng.integers(20, 236)
        red, green, blue = (int(np.clip(grey + tint, 0, 255)) for tint in rng.integers(-45, 46, 3))
        if _distance((red, green, blue), used) >= 110:
            return red, green, blue


def _distance(colour: tuple[int, int, int], used: Sequence[tuple[int, ...]]) -> float:
    return min(math.dist(colour, other) for other in used)


def _could_be(scene: Scene, other: Scene) -> bool:
    """Whether `other` contains all of `scene`, so that the caption of `scene` might fit it."""
    present = {(noun.colour, noun.shape) for noun in other.nouns}
    return {(noun.colour, noun.shape) for noun in scene.nouns} <= present


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"
