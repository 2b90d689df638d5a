"""Drawn couples of scenes: captions that differ in one word, and images that show it."""

from __future__ import annotations

import numpy as np
import pytest

from dsd_trt.couples import draw_couples


@pytest.mark.parametrize("seed", range(5))
def test_couples_differ_in_one_word_and_in_what_they_show(seed: int) -> None:
    drawn = draw_couples(10, 64, np.random.default_rng(seed))
    captions = [it.caption for it in drawn]
    assert len(set(captions)) == len(drawn) == 20
    places = set()
    for one, other in zip(drawn[::2], drawn[1::2], strict=True):
        pairs = list(zip(one.caption.split(), other.caption.split(), strict=True))
        (place,) = (at for at, (a, b) in enumerate(pairs) if a != b)
        places.add(place)
        assert one.pixels.shape == other.pixels.shape == (64, 64, 3)
        assert one.pixels.dtype == np.uint8
        same = (one.pixels == other.pixels).all(axis=2).mean()
        assert 0.4 < same < 1  # the ground, and what the word does not name
    assert places == {1, 2, 5, 8, 9}  # both colours, both shapes, the side
    again = draw_couples(10, 64, np.random.default_rng(seed))
    assert [it.caption for it in again] == captions
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(drawn, again, strict=True))


def test_a_caption_says_what_is_drawn() -> None:
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
    seen = 0
    for it in draw_couples(40, 64, np.random.default_rng(9)):
        _, first, _, _, _, side, _, _, second, _ = it.caption.split()
        for colour, where in ((first, side), (second, "right" if side == "left" else "left")):
            if first == second or colour not in colours:
                continue
            shown = (it.pixels == colours[colour]).all(axis=2)
            half = shown[:, :32] if where == "left" else shown[:, 32:]
            assert half.sum() > 0.9 * shown.sum() > 0
            seen += 1
    assert seen > 20
