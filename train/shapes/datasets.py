"""Shapes: data sets of drawn scenes, in the form of ComVG, RefCOCOg and VQAv2, and edited captions.

Images are uint8 (64, 64, 3). The random seeds are disjoint from those of pretraining, so no scene
was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dsd_trt.train.question import Question, shuffled
from dsd_trt.train.shapes.caption import caption
from dsd_trt.train.shapes.render import draw
from dsd_trt.train.shapes.scene import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIDES,
    Scene,
    Thing,
    edit_scene,
    sample_scene,
)

DrawnImage = NDArray[np.uint8]

_PARTS = ("subject", "object", "predicate")
_NUMBERS = ("one", "two", "three")
_ASKED = ("presence", "colour", "shape", "number")
_TEXTS = 10
_VISIBLE = 8  # pixels that every thing shows at least

# Pretraining uses the seeds [seed, index], [seed, index, 1] and [seed, 7, step, rank], which NumPy
# pads with zeros. None of its seeds starts with this number.
_PREFIX = int.from_bytes(b"data")
_COMVG, _REFCOCOG, _VQA, _EDITS = range(4)


def shapes_comvg(count: int, seed: int) -> Iterator[Question]:
    """Given a caption, the right image of two, whose scenes differ in one aspect.

    The kinds alternate: "subject", "object", "predicate: left of", and so on through the
    relations. Every caption names the relation with its subject and object, one of which is
    different in the wrong image.

    Args:
        count: number of questions to yield.
        seed: random seed of scenes, captions, images and the right candidates' positions.
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
    """Given an image, the right text of ten; kind "text of ten".

    Wrong texts are captions of other scenes, whose first thing, named in every caption, is not in
    the image.

    Args:
        count: number of questions to yield.
        seed: random seed of scenes, captions, images and the right candidates' positions.
    """
    for index in range(count):
        rng = _rng(_REFCOCOG, seed, index)
        scene = sample_scene(rng)
        image = _draw(scene, rng)
        wrong: list[str] = []
        while len(wrong) < _TEXTS - 1:
            other = sample_scene(rng)
            text = caption(other, rng)
            if _noun(other.things[0]) not in _nouns(scene) and text not in wrong:
                wrong.append(text)
        yield shuffled(
            "text of ten",
            (image, caption(scene, rng)),
            [(image, text) for text in wrong],
            _source(seed, index),
            _place_seed(_REFCOCOG, seed, index),
        )


def shapes_vqa(count: int, seed: int) -> Iterator[Question]:
    """Given an image and a question, the right answer; the text is both together.

    Four questions alternate. Of kind "binary" is `is there a red circle? yes`. Of kind "other" are
    `what colour is the circle? red`, `what is the red shape? circle` and
    `how many shapes are there? two`. The candidates are yes and no, all colours, all shapes, or one
    to three.

    Args:
        count: number of questions to yield.
        seed: random seed of scenes, questions, images and the right candidates' positions.
    """
    for index in range(count):
        rng = _rng(_VQA, seed, index)
        asked = _ASKED[index % len(_ASKED)]
        scene = sample_scene(rng)
        while asked not in ("presence", "number") and not _distinct(scene):
            scene = sample_scene(rng)
        question, answer, answers = _ask(asked, scene, rng)
        image = _draw(scene, rng)
        yield shuffled(
            "binary" if asked == "presence" else "other",
            (image, f"{question} {answer}"),
            [(image, f"{question} {other}") for other in answers if other != answer],
            _source(seed, index),
            _place_seed(_VQA, seed, index),
        )


def shapes_edits(count: int, seed: int) -> Iterator[Question]:
    """Given an image, its caption among captions of its edited scene; kind "caption of edits".

    Every caption names the relation. Wrong ones change the subject, the object or the relation, or
    exchange both things; of a lone thing they change it or its side. Each has words of its own.

    Args:
        count: number of questions to yield.
        seed: random seed of scenes, captions, images and the right candidates' positions.
    """
    for index in range(count):
        rng = _rng(_EDITS, seed, index)
        scene = sample_scene(rng)
        while len(set(_nouns(scene))) < len(scene.things):
            scene = sample_scene(rng)
        image, right = _draw(scene, rng), caption(scene, rng, name_relation=True)
        wrong = (caption(it, rng, name_relation=True) for it in _edits(scene, rng))
        yield shuffled(
            "caption of edits",
            (image, right),
            [(image, text) for text in dict.fromkeys(wrong)],
            _source(seed, index),
            _place_seed(_EDITS, seed, index),
        )


def _edits(scene: Scene, rng: np.random.Generator) -> Iterator[Scene]:
    """Scenes that differ from one in one aspect, so that their captions are false of its image."""
    yield edit_scene(scene, "subject", rng)
    if scene.side is not None:
        # Not another side: a thing at the left may stand at the top, too.
        opposite = dict(zip(SIDES, ("right", "left", "bottom", "top"), strict=True))
        yield replace(scene, side=opposite[scene.side])
    yield edit_scene(scene, "object", rng)  # of a lone thing, that
    if scene.relation is None:
        return
    first, second, *rest = scene.things
    yield replace(scene, things=(second, first, *rest))
    others = [it for it in RELATIONS if it != scene.relation]
    shown = [it for it in others if not _may_also_show(it, scene.relation)]
    for relation in rng.permutation(shown)[:2]:
        yield replace(scene, relation=str(relation))


def _ask(asked: str, scene: Scene, rng: np.random.Generator) -> tuple[str, str, tuple[str, ...]]:
    """A question about a scene, its answer, and all candidate answers."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    if asked == "colour":
        return f"what colour is the {thing.shape}?", thing.colour, COLOURS
    if asked == "shape":
        return f"what is the {thing.colour} shape?", thing.shape, SHAPES
    if asked == "number":
        return "how many shapes are there?", _NUMBERS[len(scene.things) - 1], _NUMBERS
    answer = "yes" if rng.random() < 0.5 else "no"
    if answer == "no":
        # A hard negative: the first thing with another shape or colour, which no thing has.
        thing = edit_scene(scene, "subject", rng).things[0]
    article = "an" if thing.colour[0] in "aeiou" else "a"
    return f"is there {article} {thing.colour} {thing.shape}?", answer, ("yes", "no")


def _sample_related(relation: str, rng: np.random.Generator) -> Scene:
    """Draw a scene with a given relation and pairwise different things."""
    while True:
        scene = sample_scene(rng)
        if scene.relation == relation and len(set(_nouns(scene))) == len(scene.things):
            return scene


def _may_also_show(relation: str, shown: str) -> bool:
    """Whether an image drawn for relation `shown` may also satisfy `relation`.

    A thing in front of another may be left of it or inside it, and a thing inside another is in
    front of it.
    """
    return shown == "in front of" or (relation, shown) == ("in front of", "inside")


def _distinct(scene: Scene) -> bool:
    """Whether all things differ in both colour and shape, so that either identifies a thing."""
    count = len(scene.things)
    return all(len(set(words)) == count for words in zip(*_nouns(scene), strict=True))


def _nouns(scene: Scene) -> list[tuple[str, str]]:
    return [_noun(thing) for thing in scene.things]


def _noun(thing: Thing) -> tuple[str, str]:
    return thing.colour, thing.shape


def _draw(scene: Scene, rng: np.random.Generator) -> DrawnImage:
    """Draw an image in which every thing is visible; a drawing that hides one is rejected."""
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
