"""Scenes: one to three things, a relation between the first two, and edits of a scene.

A `Scene` has no pixels: `render.py` draws it and `caption.py` describes it. Its vocabulary is
fixed and is all that the demonstration knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SIZES = ("small", "large")
DIRECTIONS = ("left of", "right of", "above", "below")
RELATIONS = (*DIRECTIONS, "inside", "in front of")
SIDES = ("left", "right", "top", "bottom")
EDITS = ("subject", "object", "predicate", "swap", "size", "side", "other")


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        shape: name of the shape, one of `SHAPES`.
        colour: name of the colour, one of `COLOURS`.
        size: name of the size, one of `SIZES`; None leaves the size open.
    """

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True)
class Scene:
    """The content of an image.

    Attributes:
        things: one to three things.
        relation: relation of the first thing to the second, one of `RELATIONS`; None for no
            relation, as with a lone thing.
        side: side on which a lone thing stands, one of `SIDES`; None leaves its place open.
    """

    things: tuple[Thing, ...]
    relation: str | None = None
    side: str | None = None


def sample_scene(rng: np.random.Generator) -> Scene:
    """Sample a scene of one thing (20 %), two (55 %) or three things (25 %)."""
    count = int(rng.choice([1, 2, 3], p=[0.20, 0.55, 0.25]))
    shapes, colours = _distinct(rng, SHAPES, count), _distinct(rng, COLOURS, count)
    things = tuple(
        Thing(shape, colour, _maybe_size(rng))
        for shape, colour in zip(shapes, colours, strict=True)
    )
    if count == 1:
        return Scene(things, side=str(rng.choice(SIDES)) if rng.random() < 0.5 else None)
    relation = str(rng.choice(RELATIONS, p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.1]))
    return _consistent(Scene(things, relation))


def edit_scene(scene: Scene, edit: str, rng: np.random.Generator) -> Scene:
    """Change one aspect of a scene, so that a caption naming it becomes false.

    Args:
        scene: original scene, which stays unchanged.
        edit: kind of the edit, one of `EDITS`; "subject" replaces an edit that does not apply.
        rng: random generator of the edit.
    """
    things = list(scene.things)
    if edit == "other":
        while True:
            other = sample_scene(rng)
            if other.things[0] != scene.things[0]:
                return other
    if edit == "side" and scene.side is not None:
        return replace(scene, side=_another(rng, SIDES, {scene.side}))
    sized = [i for i, thing in enumerate(things[:2]) if thing.size]
    if edit == "size" and sized and scene.relation != "inside":
        i = sized[0]
        things[i] = replace(things[i], size=_another(rng, SIZES, {str(things[i].size)}))
        return replace(scene, things=tuple(things))
    if edit == "predicate" and scene.relation is not None:
        opposite = dict(zip(DIRECTIONS, ("right of", "left of", "below", "above"), strict=True))
        if scene.relation in opposite and rng.random() < 0.7:
            relation = opposite[scene.relation]
        else:
            relation = _another(rng, RELATIONS, {scene.relation})
        return _consistent(replace(scene, relation=relation))
    if edit == "swap" and len(things) > 1:
        first, second = things[:2]
        things[0] = replace(first, colour=second.colour)
        things[1] = replace(second, colour=first.colour)
        return replace(scene, things=tuple(things))
    i = 1 if edit == "object" and len(things) > 1 else 0
    used_shapes = {thing.shape for thing in things}
    used_colours = {thing.colour for thing in things}
    what = rng.integers(3)
    shape = _another(rng, SHAPES, used_shapes) if what != 0 else things[i].shape
    colour = _another(rng, COLOURS, used_colours) if what != 1 else things[i].colour
    things[i] = replace(things[i], shape=shape, colour=colour)
    return replace(scene, things=tuple(things))


def _distinct(rng: np.random.Generator, words: tuple[str, ...], count: int) -> list[str]:
    """Sample words, without replacement in 90 % of the cases."""
    return [str(word) for word in rng.choice(words, count, replace=bool(rng.random() < 0.1))]


def _another(rng: np.random.Generator, words: tuple[str, ...], taken: set[str]) -> str:
    return str(rng.choice([word for word in words if word not in taken]))


def _maybe_size(rng: np.random.Generator) -> str | None:
    return str(rng.choice(SIZES)) if rng.random() < 0.3 else None


def _consistent(scene: Scene) -> Scene:
    """Make a scene consistent: the inner thing is small, the outer large, related things differ."""
    first, second, *rest = scene.things
    if (first.shape, first.colour) == (second.shape, second.colour):
        second = replace(second, shape=SHAPES[SHAPES.index(second.shape) - 1])
    if scene.relation == "inside":
        first = replace(first, size=first.size and "small")
        second = replace(second, size=second.size and "large")
    return replace(scene, things=(first, second, *rest))
