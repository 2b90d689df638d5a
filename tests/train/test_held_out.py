"""Questions held out for validation: what they share with those learned from."""

from __future__ import annotations

import numpy as np

from dsd_trt.train.data.held_out import hold_out
from dsd_trt.train.question import Question

CLASSES = [
    f"a {colour} {shape}" for colour in ("pink", "grey") for shape in ("star", "ring", "disc")
]


def question(number: int, text: str, negatives: list[str]) -> Question:
    picture = np.full((4, 4, 3), number, np.uint8)
    candidates = tuple((picture, each) for each in (text, *negatives))
    return Question("text", candidates, 0, f"picture {number}")


def test_no_text_is_learned_as_a_negative_alone() -> None:
    rng = np.random.default_rng(0)
    rows = [CLASSES[int(rng.integers(len(CLASSES)))] for _ in range(40)]
    questions = [
        question(i, text, [other for other in CLASSES if other != text])
        for i, text in enumerate(rows)
    ]
    parts = hold_out(questions, 0.15, 0)
    assert (len(parts.held), len(parts.learned)) == (6, 34)
    assert parts.apart == "no image in both"
    learned = {it.candidates[0][1] for it in parts.learned}
    assert {it.candidates[0][1] for it in parts.held} <= learned
    assert not {it.source for it in parts.held} & {it.source for it in parts.learned}


def test_captions_with_negatives_of_their_own_stay_apart() -> None:
    captions = [f"photo {i} of a dog" for i in range(20)]
    questions = [
        question(i, captions[i // 2], [f"photo {i} of a cat", f"photo {i} of a cow"])
        for i in range(40)
    ]
    parts = hold_out(questions, 0.15, 0)
    assert parts.apart == "no image and no right text in both"
    learned, held = ({it.candidates[0][1] for it in part} for part in (parts.learned, parts.held))
    assert not learned & held
    assert len(parts.held) == 6
