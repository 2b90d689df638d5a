"""A file's first picture, decoded: not yet upright, perhaps with transparency."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from dsd_trt.errors import ImageError
from dsd_trt.limits import IMAGE_PIXELS


@dataclass(frozen=True)
class Picture:
    """Pixels and how they are turned."""

    image: Image.Image
    orientation: int  # 1 to 8, as in EXIF


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse what has no pixels or too many, before they are unpacked."""
    if 0 in size:
        raise ImageError("it has no pixels")
    if size[0] * size[1] > max_pixels:
        raise too_large(max_pixels)


def too_large(max_pixels: int) -> ImageError:
    """The reason for which an image of many pixels is refused."""
    if max_pixels == IMAGE_PIXELS.value():
        return ImageError(IMAGE_PIXELS.refusal())
    return ImageError(f"more than {max_pixels / 1e6:.3g} million pixels")  # the caller's limit


def open_as(form: str, stream: BinaryIO, max_pixels: int) -> ImageFile.ImageFile:
    """Open with one of Pillow's decoders.

    `Image.open` would warn of large pictures, and to silence it would change the settings of a
    whole process, of which this package may be a small part.
    """
    stream.seek(0)
    try:
        image = Image.OPEN[form][0](stream, "")
    except (SyntaxError, IndexError, TypeError, struct.error):
        raise ImageError(f"damaged, or of a kind of {form} that Pillow cannot decode") from None
    check_size(image.size, max_pixels)
    return image


def samples(image: Image.Image, rawmode: str = "") -> NDArray[np.int32]:
    """What is stored for every pixel, (height, width) or (height, width, channels).

    Args:
        image: opened and, where a mode is named, not loaded yet.
        rawmode: the bytes of a sample to take, as Pillow's unpackers are named.
    """
    if rawmode and isinstance(image, ImageFile.ImageFile):
        image.tile = [_unpacked_as(rawmode, tile) for tile in image.tile]
    return np.asarray(image).astype(np.int32)


def _unpacked_as(rawmode: str, tile: Any) -> Any:
    arguments = tile[3]
    named = rawmode if isinstance(arguments, str) else (rawmode, *arguments[1:])
    # Plain tuples before Pillow 11.
    return tile._replace(args=named) if hasattr(tile, "_replace") else (*tile[:3], named)


def to_8_bits(values: NDArray[np.signedinteger[Any]], largest: int) -> NDArray[np.uint8]:
    """Samples from 0 to `largest` scaled to 8 bits and rounded."""
    return ((values.astype(np.int64) * 510 + largest) // (2 * largest)).astype(np.uint8)


def with_whole_palette(image: Image.Image) -> Image.Image:
    """Make indices beyond a file's palette black; Pillow would make them greys."""
    if image.mode != "P":
        return image
    image.load()
    colors = image.getpalette() or []
    if len(colors) < 768:
        image.putpalette(colors + [0] * (768 - len(colors)))
    return image
