"""Orientation from EXIF and XMP, the only metadata that is read.

`engines/cpp/src/orientation.cpp` is the same in C++.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

EXIF_PREFIX = b"Exif\0\0"

_TAG = 0x0112
_NUMBERS = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT, LONG
_XMP = re.compile(rb"tiff:Orientation[ \t\r\n]*(?:=[ \t\r\n]*[\"']|>)[ \t\r\n]*([0-9]{1,4})")

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(exif: bytes, xmp: bytes) -> int:
    """Orientation, 1 to 8. EXIF takes precedence over XMP; damaged metadata gives 1.

    Args:
        exif: TIFF header and the bytes after it, or empty.
        xmp: bytes of the XMP packet, or empty.
    """
    return declared(_from_exif(exif), xmp)


def declared(found: int | None, xmp: bytes) -> int:
    """Orientation from a tag's value; None if there is no tag."""
    if found is None:
        match = _XMP.search(xmp)
        found = int(match[1]) if match else 1
    return found if 1 <= found <= 8 else 1


def without_prefix(exif: bytes) -> bytes:
    """JPEG's EXIF from its TIFF header on; some writers repeat the prefix."""
    return exif.removeprefix(EXIF_PREFIX).removeprefix(EXIF_PREFIX)


def upright(image: Image.Image, turn: int) -> Image.Image:
    """The image turned upright; the same object if it already is."""
    return image.transpose(_TRANSPOSE[turn]) if turn in _TRANSPOSE else image


def _from_exif(exif: bytes) -> int | None:
    """Value of the tag in the first directory; 0 if malformed, None if there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return None
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    if start + 2 > len(exif):
        return None
    (entries,) = struct.unpack_from(f"{order}H", exif, start)
    for entry in range(start + 2, min(start + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", exif, entry)
        if tag == _TAG:
            if kind not in _NUMBERS or count != 1:
                return 0
            value: int = struct.unpack_from(order + _NUMBERS[kind], exif, entry + 8)[0]
            return value
    return None
