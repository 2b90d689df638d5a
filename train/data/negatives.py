"""Negatives for rows that have none: texts of other rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from dsd_trt.errors import InputError, counted
from dsd_trt.image.preprocess import image_identity
from dsd_trt.train.data.likeness import image_keys, may_describe_the_same, words_of
from dsd_trt.train.question import Question, shuffled

COUNT = 3
"""Negatives that are drawn for a question, if there are as many."""

_TRIES = 200  # random draws before every text is looked at


def draw_negatives(questions: Sequence[Question], seed: int) -> list[Question]:
    """Give questions whose negatives are drawn other questions' right texts as negatives.

    A text is no negative of an image if the image, also under another name, has a text with it
    that may describe the same, see `may_describe_the_same`.

    Args:
        questions: questions to draw from; all others are returned as they are.
        seed: random seed of the negatives and of the right text's position.

    Returns:
        The questions in their order. A question without any negative is left out.

    Raises:
        InputError: no question has a negative.
    """
    if not any(question.drawn for question in questions):
        return list(questions)
    right = [question.candidates[question.right] for question in questions]
    keys = image_keys(image for image, _ in right)
    of_image: dict[Hashable, set[frozenset[str]]] = defaultdict(set)
    words: dict[str, frozenset[str]] = {}
    for image, text in right:
        words[text] = words_of(text)
        of_image[keys[image_identity(image)]].add(words[text])
    texts = list(words)
    found = []
    for number, question in enumerate(questions):
        if not question.drawn:
            found.append(question)
            continue
        image, text = right[number]
        rng = np.random.default_rng([seed, number])
        own = of_image[keys[image_identity(image)]]
        wrong: dict[str, None] = {}
        for other in _in_random_order(texts, rng):
            if len(wrong) == COUNT:
                break
            if not any(may_describe_the_same(words[other], mine) for mine in own):
                wrong[other] = None
        if wrong:
            pairs = [(image, it) for it in wrong]
            drawn = shuffled(question.kind, (image, text), pairs, question.source, [seed, number])
            found.append(
                Question(drawn.kind, drawn.candidates, drawn.right, drawn.source, drawn=True)
            )
    if not found:
        raise InputError(
            f"{counted(len(questions), 'row')}, and no text that could be a negative of another: "
            "all texts may describe the same. Add rows with other texts, or a column of negatives"
        )
    return found


def _in_random_order(texts: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Random texts, some repeatedly at first; in the end every one of them."""
    for _ in range(_TRIES):
        yield texts[int(rng.integers(len(texts)))]
    yield from (texts[int(i)] for i in rng.permutation(len(texts)))
