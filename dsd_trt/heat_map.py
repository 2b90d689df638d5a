"""Heat maps as colours: a colour scale for all eyes, and a picture under its heat.

The scale goes from dark blue to light yellow, in OKLab. Its lightness grows in a straight line.
Otherwise it moves along the axis from blue to yellow alone, which people with any of the common
forms of colour blindness see. Colours follow the square root of heat, because most of a word's heat
is on few places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LIGHTNESS = (0.24, 0.93)
_YELLOW = (-0.105, 0.155)  # OKLab's b, of which negative is blue
_GREEN = -0.015  # OKLab's a, of which negative is green: keeps the middle from turning pink
_OPACITY = (0.3, 0.95)  # of the colour over the picture, from no heat to the largest
_DIMMED = 0.75  # grey of the picture under it
_MIDDLE = 110  # grey under the colours of a legend

# OKLab to linear sRGB, from its definition (Björn Ottosson, 2020).
_TO_CONES = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def colours(heat: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour of each heat, uint8 (..., 3) in sRGB.

    Args:
        heat: heat from 0, none, to 1, the largest; values outside are drawn as these.
    """
    t = np.clip(np.asarray(heat, np.float64), 0, 1)
    lightness, yellow = (low + (high - low) * t for low, high in (_LIGHTNESS, _YELLOW))
    lab = np.stack([lightness, np.full_like(t, _GREEN), yellow], axis=-1)
    linear = np.clip((lab @ _TO_CONES.T) ** 3 @ _TO_LINEAR.T, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (curved * 255 + 0.5).astype(np.uint8)


def of_scale(share: float) -> float:
    """Heat, as a part of the largest, whose colour stands at a share of the scale."""
    return share * share


def overlay(picture: Image.Image, heat: NDArray[Any], largest: float) -> Image.Image:
    """A picture in grey under its heat; every place of the heat is one rectangle.

    Args:
        picture: RGB picture in the size to draw.
        heat: heat of each place, (rows, columns).
        largest: heat that gets the last colour of the scale.
    """
    share = np.sqrt(np.clip(heat / largest if largest > 0 else np.zeros_like(heat), 0, 1))
    rows = np.arange(picture.height) * heat.shape[0] // picture.height
    columns = np.arange(picture.width) * heat.shape[1] // picture.width
    grey = np.asarray(picture.convert("L"), np.float64)[..., None] * _DIMMED
    return Image.fromarray(_laid_over(grey, share[rows][:, columns]))


def legend(width: int, height: int) -> Image.Image:
    """The scale from left to right, as it looks over a grey picture."""
    share = np.broadcast_to(np.linspace(0, 1, width), (height, width))
    return Image.fromarray(_laid_over(np.full((height, width, 1), float(_MIDDLE)), share))


def _laid_over(grey: NDArray[np.float64], share: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = _OPACITY
    opacity = (low + (high - low) * np.sqrt(share))[..., None]
    return (grey * (1 - opacity) + colours(share) * opacity + 0.5).astype(np.uint8)
