"""Twins as questions: the right one of two captions for an image, and the converse."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dsd_trt.train.question import Question, shuffled
from dsd_trt.train.shapes.twins import draw_twins, sample_twins


def twin_questions(seed: int, count: int) -> Iterator[Question]:
    """Four questions per pair of twins, whose kind is the edit.

    Args:
        seed: random seed of the twins.
        count: number of pairs of twins.
    """
    for index in range(count):
        twins = sample_twins(seed, index)
        captions = twins.captions(np.random.default_rng([seed, index, 2]))
        images = [drawing.pixels for drawing in draw_twins(seed, index)]
        for k in range(2):
            right, wrong = (images[k], captions[k]), (images[k], captions[1 - k])
            yield shuffled(twins.edit, right, [wrong], f"twins {index}", [seed, index, 3 + k])
            wrong = (images[1 - k], captions[k])
            yield shuffled(twins.edit, right, [wrong], f"twins {index}", [seed, index, 5 + k])
