"""Questions held out for validation, with images and texts that nothing is learned from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from dsd_trt.errors import InputError, counted
from dsd_trt.image.preprocess import image_identity
from dsd_trt.train.data.likeness import image_keys, words_of
from dsd_trt.train.data.negatives import draw_negatives
from dsd_trt.train.question import Question

# What the parts do not share, whether that are images, and whether that are right texts; each is
# tried if the one before leaves too few questions to hold out.
_WAYS = (
    ("no image and no right text in both", True, True),
    ("no image in both", True, False),
    ("no source in both", False, False),
)


@dataclass(frozen=True)
class HeldOut:
    """Questions to learn from, and questions to validate on.

    Attributes:
        learned: questions to learn from.
        held: questions to validate on; possibly none.
        apart: what the two parts do not share, as a part of a sentence; "" if none were to be held
            out.
    """

    learned: list[Question]
    held: list[Question]
    apart: str

    def lines(self) -> list[str]:
        """What was done with the questions, for the user."""
        learned, held = (_about(part) for part in (self.learned, self.held))
        if not self.held:
            why = ": they cannot be divided without an image in both" if self.apart else ""
            return [f"learning from {learned}; none held out for validation{why}"]
        return [f"learning from {learned}; validating on {held}, {self.apart}"]


def hold_out(questions: Sequence[Question], share: float, seed: int) -> HeldOut:
    """Divide questions so that the two parts share no image and, where it can be, no right text.

    Where texts are few, as class names are, both parts have them, and images alone are kept apart.
    So they are where a text held out would be learned from as a negative alone, that is as wrong
    for every image.

    Args:
        questions: questions to divide, in any order.
        share: share of the questions to hold out, in [0, 1).
        seed: random seed of the choice, and of negatives that are drawn again in each part.
    """
    wanted = max(1, round(share * len(questions))) if share > 0 else 0
    keys = image_keys(image for question in questions for image, _ in question.candidates)
    chosen: set[int] = set()
    apart = ""
    for apart, images, texts in _WAYS if wanted else ():  # noqa: B007 (the last way is kept)
        chosen = _choose(_groups(questions, keys if images else {}, texts=texts), wanted, seed)
        if wanted <= 2 * len(chosen) and not (texts and _become_wrong(questions, chosen)):
            break
    parts = [
        [question for i, question in enumerate(questions) if (i in chosen) == held]
        for held in (False, True)
    ]
    learned, held = (_drawn_within(part, questions, seed) for part in parts)
    return HeldOut(learned, held, apart)


def _become_wrong(questions: Sequence[Question], chosen: set[int]) -> bool:
    """Whether a right text of the chosen questions is a given negative of the others."""
    negatives = {
        words_of(text)
        for i, question in enumerate(questions)
        if i not in chosen and not question.drawn
        for _, text in question.candidates
    }
    rights = (questions[i].candidates[questions[i].right][1] for i in chosen)
    return any(words_of(text) in negatives for text in rights)


def _drawn_within(
    part: Sequence[Question], everything: Sequence[Question], seed: int
) -> list[Question]:
    """Negatives from the part's own texts, unless there are too few of them."""
    if not any(question.drawn for question in part):
        return list(part)
    texts = {words_of(question.candidates[question.right][1]) for question in part}
    if len(texts) < min(4, len(everything)):  # a right text and three negatives
        return list(part)
    try:
        drawn = draw_negatives(part, seed)
    except InputError:
        return list(part)
    return drawn if len(drawn) == len(part) else list(part)


def _groups(
    questions: Sequence[Question], keys: dict[object, Hashable], *, texts: bool
) -> list[list[int]]:
    """Numbers of the questions that must stay together, in order of the first of each.

    Args:
        questions: questions of both parts, numbered from 0.
        keys: key of each image, by its identity; none to keep sources together alone.
        texts: whether questions of one right text stay together too.
    """
    parents = list(range(len(questions)))

    def find(place: int) -> int:
        while parents[place] != place:
            parents[place] = place = parents[parents[place]]
        return place

    first: dict[Hashable, int] = {}
    for number, question in enumerate(questions):
        shared: list[Hashable] = [("source", question.source)]
        if keys:
            shared += [("image", keys[image_identity(image)]) for image, _ in question.candidates]
        if texts:
            shared.append(("text", words_of(question.candidates[question.right][1])))
        for thing in shared:
            one, other = find(first.setdefault(thing, number)), find(number)
            parents[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(questions)):
        groups[find(number)].append(number)
    return list(groups.values())


def _choose(groups: Sequence[Sequence[int]], wanted: int, seed: int) -> set[int]:
    """Groups in random order until there are enough; none that would take half too much."""
    chosen: set[int] = set()
    if len(groups) < 2:
        return chosen
    for place in np.random.default_rng(seed).permutation(len(groups)):
        if len(chosen) >= wanted:
            break
        if len(chosen) + len(groups[place]) <= max(1.5 * wanted, 1):
            chosen |= set(groups[place])
    return chosen


def _about(questions: Sequence[Question]) -> str:
    images = {image_identity(image) for it in questions for image, _ in it.candidates}
    return f"{counted(len(questions), 'question')} about {counted(len(images), 'image')}"
