"""The colours of heat maps: told apart by all eyes, in grey as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dsd_trt.heat_map import colours, legend, of_scale, overlay

# What a dichromat sees, in linear RGB (Viénot, Brettel and Mollon, 1999).
SIGHT = {
    "trichromat": np.eye(3),
    "protanope": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deuteranope": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


def lab(color: NDArray[np.uint8], sight: str = "trichromat") -> NDArray[np.float64]:
    """CIE L*a*b* of sRGB colours (D65), from the definitions."""
    curved = color.astype(np.float64) / 255
    linear = np.where(curved <= 0.04045, curved / 12.92, ((curved + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(SIGHT[sight]).T, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz).T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@pytest.mark.parametrize("sight", SIGHT)
def test_more_heat_is_lighter(sight: str) -> None:
    seen = lab(colours(np.linspace(0, 1, 65)), sight)
    assert (np.diff(seen[:, 0]) > 0).all()
    assert seen[-1, 0] - seen[0, 0] > 75
    # Nearly in a straight line: a step looks alike wherever it is.
    line = np.linspace(seen[0, 0], seen[-1, 0], 65)
    assert np.abs(seen[:, 0] - line).max() < 6


@pytest.mark.parametrize("sight", SIGHT)
def test_eleven_colours_are_told_apart(sight: str) -> None:
    seen = lab(colours(np.linspace(0, 1, 11)), sight)
    apart = np.linalg.norm(np.diff(seen, axis=0), axis=1)
    assert apart.min() > 5  # 2.3 is just noticeable


def test_the_ends_are_blue_and_yellow() -> None:
    first, last = colours(np.array([0.0, 1.0])).astype(int)
    assert first[2] > 1.5 * max(first[:2])
    assert min(last[:2]) > 1.5 * last[2]
    np.testing.assert_array_equal(colours(np.array([-1.0, 2.0])), [first, last])


@pytest.mark.parametrize("size", [(64, 48), (33, 70), (4, 4)])
def test_every_place_is_drawn_where_it_is(size: tuple[int, int]) -> None:
    """Of black pictures, the colour is the scale's alone."""
    heat = np.array([[0.0, 1.0, 0.0, 0.25], [0.5, 0.0, 0.0, 0.0]])
    drawn = np.asarray(overlay(Image.new("RGB", size), heat, 1.0)).astype(int)
    assert drawn.shape == (size[1], size[0], 3)
    for y in range(size[1]):
        for x in range(size[0]):
            value = heat[y * 2 // size[1], x * 4 // size[0]]
            same = np.asarray(overlay(Image.new("RGB", (1, 1)), np.array([[value]]), 1.0))
            assert (drawn[y, x] == same[0, 0]).all()


def test_the_picture_is_seen_through_where_there_is_no_heat() -> None:
    halves: NDArray[Any] = np.zeros((8, 8, 3), np.uint8)
    halves[:, 4:] = 255
    cold = lab(np.asarray(overlay(Image.fromarray(halves), np.zeros((2, 2)), 0.0)))
    assert cold[0, 7, 0] - cold[0, 0, 0] > 30
    hot = lab(np.asarray(overlay(Image.fromarray(halves), np.ones((2, 2)), 1.0)))
    assert 0 < hot[0, 7, 0] - hot[0, 0, 0] < 10


def test_the_legend_has_the_colours_of_overlays() -> None:
    """At each of its places, those of the heat that its numbers say, over a middle grey."""
    bar = np.asarray(legend(101, 3)).astype(int)
    for share in (0.0, 0.25, 0.5, 1.0):
        grey = Image.new("RGB", (1, 1), (147, 147, 147))  # 110 once it is dimmed
        drawn = np.asarray(overlay(grey, np.array([[of_scale(share)]]), 1.0))[0, 0].astype(int)
        assert np.abs(bar[1, round(share * 100)] - drawn).max() <= 1
