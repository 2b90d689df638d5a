"""Twins as questions: the right caption of two for a picture, the right picture for a caption."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dsd_trt.train.question import Question, shuffled
from dsd_trt.train.shapes.twins import draw_twins, sample_twins


def twin_questions(seed: int, count: int) -> Iterator[Question]:
    """Four questions a pair of twins; their kind is what was edited.

    Args:
        seed: of the twins.
        count: how many pairs of twins.
    """
    for index in range(count):
        twins = sample_twins(seed, index)
        captions = twins.captions(np.random.default_rng([seed, index, 2]))
        pictures = [drawing.pixels for drawing in draw_twins(seed, index)]
        for k in range(2):
            right, wrong = (pictures[k], captions[k]), (pictures[k], captions[1 - k])
            yield shuffled(twins.edit, right, [wrong], f"twins {index}", [seed, index, 3 + k])
            wrong = (pictures[1 - k], captions[k])
            yield shuffled(twins.edit, right, [wrong], f"twins {index}", [seed, index, 5 + k])
