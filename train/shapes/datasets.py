"""Shapes: scenes of the embedded model's world, drawn and asked about on the spot.

Pictures are uint8 (64, 64, 3). No scene is one that pretraining drew: its seeds start otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dsd_trt.train.question import Question, shuffled
from dsd_trt.train.shapes.caption import caption
from dsd_trt.train.shapes.render import draw
from dsd_trt.train.shapes.scene import (
    COLOURS,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    edit_scene,
    sample_scene,
)

DrawnPicture = NDArray[np.uint8]

_PARTS = ("subject", "object", "predicate")
_NUMBERS = ("one", "two", "three")
_ASKED = ("presence", "colour", "shape", "number")
_TEXTS = 10
_VISIBLE = 8  # pixels of a thing that shows

# Pretraining draws from the seeds [seed, index], [seed, index, 1] and [seed, 7, step, rank]; NumPy
# fills all up with zeros. No seed of a run is this number.
_PREFIX = int.from_bytes(b"data")
_COMVG, _REFCOCOG, _VQA = range(3)


def shapes_comvg(count: int, seed: int) -> Iterator[Question]:
    """Given a caption, the right picture of two, whose scenes differ in one part.

    The kinds take turns: "subject", "object", "predicate: left of", and so on through the
    relations. Every caption names the relation and what it holds between; in the wrong picture the
    subject or the object is another, or the relation is, and the caption is false.

    Args:
        count: questions.
        seed: of scenes, captions, pictures and places.
    """
    for index in range(count):
        rng = _rng(_COMVG, seed, index)
        part, relation = _PARTS[index % 3], RELATIONS[index // 3 % len(RELATIONS)]
        scene = _sample_related(relation, rng)
        wrong = edit_scene(scene, part, rng)
        while part == "predicate" and _may_also_show(relation, str(wrong.relation)):
            wrong = edit_scene(scene, part, rng)
        text = caption(scene, rng, name_relation=True)
        yield shuffled(
            f"predicate: {relation}" if part == "predicate" else part,
            (_draw(scene, rng), text),
            [(_draw(wrong, rng), text)],
            _source(seed, index),
            _place_seed(_COMVG, seed, index),
        )


def shapes_refcocog(count: int, seed: int) -> Iterator[Question]:
    """Given a picture, the right text of ten; kind "text of ten".

    The others are captions of scenes whose first thing, which every caption names, this one lacks.

    Args:
        count: questions.
        seed: of scenes, captions, pictures and places.
    """
    for index in range(count):
        rng = _rng(_REFCOCOG, seed, index)
        scene = sample_scene(rng)
        picture = _draw(scene, rng)
        wrong: list[str] = []
        while len(wrong) < _TEXTS - 1:
            other = sample_scene(rng)
            text = caption(other, rng)
            if _noun(other.things[0]) not in _nouns(scene) and text not in wrong:
                wrong.append(text)
        yield shuffled(
            "text of ten",
            (picture, caption(scene, rng)),
            [(picture, text) for text in wrong],
            _source(seed, index),
            _place_seed(_REFCOCOG, seed, index),
        )


def shapes_vqa(count: int, seed: int) -> Iterator[Question]:
    """Given a picture and a question, the right answer, both put together as one text.

    Four questions take turns: "is there a red circle? yes", of kind "binary", and of kind "other"
    "what colour is the circle? red", "what is the red shape? circle" and "how many shapes are
    there? two". The candidates are yes and no, all colours, all shapes, or one to three.

    Args:
        count: questions.
        seed: of scenes, questions, pictures and places.
    """
    for index in range(count):
        rng = _rng(_VQA, seed, index)
        asked = _ASKED[index % len(_ASKED)]
        scene = sample_scene(rng)
        while asked not in ("presence", "number") and not _distinct(scene):
            scene = sample_scene(rng)
        question, answer, answers = _ask(asked, scene, rng)
        picture = _draw(scene, rng)
        yield shuffled(
            "binary" if asked == "presence" else "other",
            (picture, f"{question} {answer}"),
            [(picture, f"{question} {other}") for other in answers if other != answer],
            _source(seed, index),
            _place_seed(_VQA, seed, index),
        )


def _ask(asked: str, scene: Scene, rng: np.random.Generator) -> tuple[str, str, tuple[str, ...]]:
    """A question, its answer, and all answers it could have."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    if asked == "colour":
        return f"what colour is the {thing.shape}?", thing.colour, COLOURS
    if asked == "shape":
        return f"what is the {thing.colour} shape?", thing.shape, SHAPES
    if asked == "number":
        return "how many shapes are there?", _NUMBERS[len(scene.things) - 1], _NUMBERS
    answer = "yes" if rng.random() < 0.5 else "no"
    if answer == "no":
        # Near what is there: another shape or colour than the first thing's, which nothing has.
        thing = edit_scene(scene, "subject", rng).things[0]
    article = "an" if thing.colour[0] in "aeiou" else "a"
    return f"is there {article} {thing.colour} {thing.shape}?", answer, ("yes", "no")


def _sample_related(relation: str, rng: np.random.Generator) -> Scene:
    """A scene with this relation, no two things of which are alike."""
    while True:
        scene = sample_scene(rng)
        if scene.relation == relation and len(set(_nouns(scene))) == len(scene.things):
            return scene


def _may_also_show(relation: str, shown: str) -> bool:
    """Whether a picture made to show one relation may bear out another, too.

    What is in front of something may be left of it or inside it; what is inside is in front.
    """
    return shown == "in front of" or (relation, shown) == ("in front of", "inside")


def _distinct(scene: Scene) -> bool:
    """Whether "the circle" and "the red shape" are one thing each."""
    count = len(scene.things)
    return all(len(set(words)) == count for words in zip(*_nouns(scene), strict=True))


def _nouns(scene: Scene) -> list[tuple[str, str]]:
    return [_noun(thing) for thing in scene.things]


def _noun(thing: Thing) -> tuple[str, str]:
    return thing.colour, thing.shape


def _draw(scene: Scene, rng: np.random.Generator) -> DrawnPicture:
    """A picture in which every thing shows; now and then one hides another."""
    while True:
        drawing = draw(scene, rng)
        if drawing.masks.sum(axis=(1, 2)).min() >= _VISIBLE:
            return drawing.pixels


def _rng(form: int, seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([_PREFIX, form, seed, index])


def _place_seed(form: int, seed: int, index: int) -> list[int]:
    return [_PREFIX, form, seed, index, 1]


def _source(seed: int, index: int) -> str:
    return f"scene {seed}-{index}"
