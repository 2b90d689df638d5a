"""BMP: an alpha channel that nobody filled."""

from __future__ import annotations

from typing import BinaryIO

from dsd_trt.formats.picture import Picture, open_as, with_whole_palette


def read(stream: BinaryIO, max_pixels: int) -> Picture:
    """The bitmap; opaque where all of it would be transparent, as viewers show it."""
    image = open_as("BMP", stream, max_pixels)
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return Picture(image.convert("RGB"), 1)
    return Picture(with_whole_palette(image), 1)
