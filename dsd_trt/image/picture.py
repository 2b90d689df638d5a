"""The first image of a file, decoded but not yet upright, perhaps with transparency."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from dsd_trt.errors import ImageError
from dsd_trt.image.room import ROOM
from dsd_trt.limits import IMAGE_PIXELS


@dataclass(frozen=True)
class Picture:
    """Pixels with their orientation."""

    image: Image.Image
    orientation: int  # 1 to 8, as in EXIF


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse an image with no pixels or too many, before it is decompressed.

    An image that is accepted waits here for room among those that other threads decode.
    """
    if 0 in size:
        raise ImageError("it has no pixels")
    if size[0] * size[1] > max_pixels:
        raise too_large(max_pixels)
    ROOM.take(size[0] * size[1])


def too_large(max_pixels: int) -> ImageError:
    """Reason for refusing an image with too many pixels."""
    if max_pixels == IMAGE_PIXELS.value():
        return ImageError(IMAGE_PIXELS.refusal())
    return ImageError(f"more than {max_pixels / 1e6:.3g} million pixels")  # caller's limit


def open_as(form: str, stream: BinaryIO, max_pixels: int) -> ImageFile.ImageFile:
    """Open with a given Pillow decoder.

    `Image.open` would warn about large images. Silencing it would change a setting of the whole
    process, which belongs to the caller.
    """
    stream.seek(0)
    try:
        image = Image.OPEN[form][0](stream, "")
    except (SyntaxError, IndexError, TypeError, struct.error):
        raise ImageError(f"damaged, or of a kind of {form} that Pillow cannot decode") from None
    check_size(image.size, max_pixels)
    return image


def samples(image: Image.Image, rawmode: str = "") -> NDArray[np.int32]:
    """Stored samples, (height, width) or (height, width, channels).

    Args:
        image: an opened image, not loaded yet if `rawmode` is given.
        rawmode: bytes of a sample to use, as a raw mode of Pillow's unpackers.
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
    """Scale samples from 0..`largest` to 8 bits, rounded."""
    return ((values.astype(np.int64) * 510 + largest) // (2 * largest)).astype(np.uint8)


def with_whole_palette(image: Image.Image) -> Image.Image:
    """Make palette indices beyond the palette black; Pillow would make them grey."""
    if image.mode != "P":
        return image
    image.load()
    colors = image.getpalette() or []
    if len(colors) < 768:
        image.putpalette(colors + [0] * (768 - len(colors)))
    return image
