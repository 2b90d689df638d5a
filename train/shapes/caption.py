"""Captions: sentences that are true of a scene."""

from __future__ import annotations

import numpy as np

from dsd_trt.train.shapes.scene import Scene, Thing

_PHRASES = {
    "left of": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
    "inside": ("inside", "inside of", "within", "in"),
    "in front of": ("in front of", "in front of", "overlapping"),
}
_SIDE_PHRASES = {
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "on top"),
    "bottom": ("at the bottom", "on the bottom"),
}
SIDES_OF = {  # sides of subject and object, by direction
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
_OPENINGS = (
    ("", 0.55),
    ("there is ", 0.1),
    ("a picture of ", 0.06),
    ("an image of ", 0.06),
    ("a photo of ", 0.06),
    ("this is ", 0.05),
    ("a drawing of ", 0.04),
    ("we see ", 0.04),
    ("an image with ", 0.04),
)
_VERBS = ("is", "is placed", "sits", "lies", "stands")


def caption(scene: Scene, rng: np.random.Generator, *, name_relation: bool = False) -> str:
    """Draw one of the sentences that are true of a scene.

    Half of the sentences name a third thing. Sizes are named if the scene specifies them.

    Args:
        scene: scene of which the sentence is true.
        rng: random generator of the words and the form.
        name_relation: whether the scene's relation is always named, instead of in five of six
            sentences.
    """
    article = "a" if rng.random() < 0.7 else "the"
    names = [_name(thing, article) for thing in scene.things]
    opening = _choose_opening(rng)
    if len(names) == 1:
        text = opening + names[0]
        if scene.side is not None:
            text += " " + _pick(rng, _SIDE_PHRASES[scene.side])
    elif scene.relation is None or (rng.random() < 1 / 6 and not name_relation):
        order = rng.permutation(len(names)) if rng.random() < 0.5 else range(len(names))
        text = opening + _listing([names[i] for i in order])
    else:
        text = _relation(opening, names, _pick(rng, _PHRASES[scene.relation]), rng)
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.15 else text


def sides_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of both things' sides: "a red circle on the left and a blue star on the right"."""
    subject, target = (_name(thing, "a") for thing in scene.things[:2])
    near, far = (_pick(rng, _SIDE_PHRASES[side]) for side in SIDES_OF[scene.relation or ""])
    return f"{_choose_opening(rng)}{subject} {near} and {target} {far}"


def words() -> list[str]:
    """All words of all captions, lower case and sorted, which the tokenizer has to know."""
    from dsd_trt.train.shapes import scene as vocabulary

    text = [*vocabulary.SHAPES, *vocabulary.COLOURS, *vocabulary.SIZES, *vocabulary.RELATIONS]
    for phrases in (*_PHRASES.values(), *_SIDE_PHRASES.values()):
        text.extend(phrases)
    text += [opening for opening, _ in _OPENINGS] + list(_VERBS)
    text += ["a an the and with , . next to beside near background on of scene shape colour color"]
    return sorted({word for line in text for word in line.split()})


def _relation(opening: str, names: list[str], phrase: str, rng: np.random.Generator) -> str:
    subject, target, *rest = names
    form = rng.random()
    if form < 0.5 or opening:
        text = f"{opening}{subject} {phrase} {target}"
    elif form < 0.85:
        text = f"{subject} {_pick(rng, _VERBS)} {phrase} {target}"
    else:
        text = f"{phrase} {target} {_pick(rng, ('is', 'there is'))} {subject}"
    if rest and rng.random() < 0.5:
        text += f" and {rest[0]}" if rng.random() < 0.7 else f", with {rest[0]}"
    return text


def _name(thing: Thing, article: str) -> str:
    adjectives = [thing.size, thing.colour] if thing.size else [thing.colour]
    first = str(adjectives[0])
    if article == "a" and first[0] in "aeiou":
        article = "an"
    return " ".join([article, *map(str, adjectives), thing.shape])


def _listing(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _choose_opening(rng: np.random.Generator) -> str:
    weights = np.array([weight for _, weight in _OPENINGS])
    return _OPENINGS[int(rng.choice(len(_OPENINGS), p=weights / weights.sum()))][0]


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
