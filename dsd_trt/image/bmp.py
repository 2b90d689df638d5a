"""BMP: unused alpha channels, and the alpha bit of 16-bit pixels."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

from PIL import Image, ImageFile

from dsd_trt.image.picture import Picture, open_as, with_whole_palette

_BITFIELDS = 3
# Bits per pixel and compression, then the masks of red, green, blue and alpha.
_A1R5G5B5 = (16, _BITFIELDS, 0x7C00, 0x3E0, 0x1F, 0x8000)
_WITH_ALPHA_MASK = 56  # bytes of the shortest header with an alpha mask


def read(stream: BinaryIO, max_pixels: int) -> Picture:
    """Decode the bitmap; opaque if all alpha is zero, as viewers show it."""
    image: Image.Image = (opened := open_as("BMP", stream, max_pixels))
    if _has_one_bit_of_alpha(stream):
        image = _with_alpha(opened, stream)
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return Picture(image.convert("RGB"), 1)
    return Picture(with_whole_palette(image), 1)


def _has_one_bit_of_alpha(stream: BinaryIO) -> bool:
    stream.seek(14)
    header = stream.read(_WITH_ALPHA_MASK)
    if len(header) < _WITH_ALPHA_MASK or struct.unpack_from("<I", header)[0] < _WITH_ALPHA_MASK:
        return False
    kind = struct.unpack_from("<HI", header, 14)
    return (*kind, *struct.unpack_from("<4I", header, 40)) == _A1R5G5B5


def _with_alpha(opened: ImageFile.ImageFile, stream: BinaryIO) -> Image.Image:
    """Unpack again with the bit that Pillow treats as padding."""
    tile: Any = opened.tile[0]  # a plain tuple before Pillow 11
    _, _, offset, (_, stride, direction) = tile
    opened.load()  # fails for a truncated file
    stream.seek(offset)
    rows = stream.read(stride * opened.height)
    return Image.frombytes("RGBA", opened.size, rows, "raw", "BGRA;15", stride, direction)
