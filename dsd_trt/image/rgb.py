"""Pixels in any Pillow mode to RGB on white."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsd_trt.errors import ImageError
from dsd_trt.image.picture import to_8_bits

_REFUSED = {
    "F": "floating-point pixels have no defined white",
    "LAB": "CIE L*a*b* colours: convert them to RGB",
}
_WHITE = 65535  # integer modes: 16-bit greys


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, composited on white; orientation is not applied."""
    if image.mode in _REFUSED:
        raise ImageError(_REFUSED[image.mode])
    image.load()
    if image.mode in ("RGBa", "La"):
        return _from_premultiplied(image)
    key = image.info.get("transparency")
    if key is not None and not _is_alpha_of_palette(image, key):
        image = image.copy()  # Pillow's conversions would fail on it, or misread it
        del image.info["transparency"]
    if image.mode.startswith("I"):
        return _from_integers(image, key)
    if image.mode in ("1", "L", "RGB"):
        return _without_color(image, key)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _is_alpha_of_palette(image: Image.Image, key: object) -> bool:
    if image.mode != "P":
        return False
    index = isinstance(key, int) and 0 <= key <= 255
    return index or (isinstance(key, bytes) and len(key) <= 256)


def _from_integers(image: Image.Image, key: object) -> Image.Image:
    """Convert 16-bit greys; Pillow would clip everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > _WHITE:
        raise ImageError("grey values of more than 16 bits")
    grey = to_8_bits(values, _WHITE)
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _without_color(image: Image.Image, key: Any) -> Image.Image:
    """Make a transparent colour white; other declared values are ignored."""
    pixels = image.convert("RGB")
    parts = (key,) * 3 if isinstance(key, int) and image.mode != "RGB" else key
    whole = isinstance(parts, tuple) and all(isinstance(part, int) for part in parts)
    if not whole or len(parts) != 3:
        return pixels
    # For 16-bit PNG, Pillow keeps the colours' high bytes but the whole key.
    shift = 8 if max(parts) > 255 else 0
    rgb = np.array(pixels)
    rgb[(rgb == [part >> shift for part in parts]).all(axis=2)] = 255
    return Image.fromarray(rgb)


def _from_premultiplied(image: Image.Image) -> Image.Image:
    pixels: NDArray[np.int32] = np.asarray(image).astype(np.int32)
    color, alpha = pixels[..., :-1], pixels[..., -1:]
    rgb = np.broadcast_to(np.minimum(color + 255 - alpha, 255), (*alpha.shape[:2], 3))
    return Image.fromarray(np.ascontiguousarray(rgb.astype(np.uint8)))
