"""Image orientation in EXIF and XMP."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from pictures.case import (
    Pixels,
)

# Stored pixels of an upright scene, for each EXIF orientation.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


def exif_bytes(
    value: int, order: str = ">", kind: int = 3, count: int = 1, entries: int = 1
) -> bytes:
    """A TIFF header and a directory with the orientation, in EXIF's layout."""
    number = {1: "B", 3: "H", 4: "I"}.get(kind, "I")
    data = struct.pack(order + number, value).ljust(4, b"\0")
    head = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HIH", 42, 8, entries)
    return head + struct.pack(f"{order}HHI", 0x0112, kind, count) + data + b"\0" * 4


def xmp_bytes(inside: str) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {inside}/></x:xmpmeta>'.encode()


def exif_variants() -> dict[str, tuple[bytes, bytes, int]]:
    """EXIF data, XMP data and the resulting orientation, by a description."""
    says_6, says_3 = xmp_bytes('tiff:Orientation="6"'), xmp_bytes('tiff:Orientation="3"')
    directory = exif_bytes(8)
    return {
        "little-endian": (exif_bytes(6, "<"), b"", 6),
        "a byte": (exif_bytes(6, kind=1), b"", 6),
        "a long": (exif_bytes(5, "<", kind=4), b"", 5),
        "a ratio": (exif_bytes(6, kind=5), b"", 1),
        "two values": (exif_bytes(6, count=2), b"", 1),
        "zero": (exif_bytes(0), says_6, 1),
        "nine": (exif_bytes(9), says_6, 1),
        "65535": (exif_bytes(65535), b"", 1),
        "more entries than there are": (exif_bytes(7, entries=999), b"", 7),
        "no entries": (exif_bytes(7, entries=0), says_6, 6),
        "a directory beyond the end": (directory[:4] + b"\0\0\xff\0" + directory[8:], b"", 1),
        "a directory cut": (directory[:15], says_3, 3),
        "no TIFF header": (b"not EXIF at all", b"", 1),
        "another magic": (b"MM\0+" + directory[4:], b"", 1),
        "EXIF before XMP": (exif_bytes(8), says_6, 8),
        "XMP": (b"", says_6, 6),
        "XMP in an element": (b"", b"<tiff:Orientation>8</tiff:Orientation>", 8),
        "XMP in single quotes": (b"", xmp_bytes("tiff:Orientation = '7'"), 7),
        "XMP of ten": (b"", xmp_bytes('tiff:Orientation="10"'), 1),
        "XMP of nothing": (b"", xmp_bytes('tiff:Orientation=""'), 1),
    }
