"""AVIF: orientation is a property of the item; its EXIF is not read."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

from dsd_trt.image.orientation import orientation, without_prefix
from dsd_trt.image.picture import Picture, open_as


def read(stream: BinaryIO, max_pixels: int) -> Picture:
    """Decode the image; the first one of a sequence."""
    data = bytearray(stream.read())
    _hide_exif(data)
    image = open_as("AVIF", BytesIO(bytes(data)), max_pixels)
    # This EXIF was made by Pillow from the properties `irot` and `imir`.
    return Picture(image, orientation(without_prefix(image.info.get("exif", b"")), b""))


def _hide_exif(data: bytearray) -> None:
    """Rename EXIF items in place: Pillow would parse them, and refuse images with faulty EXIF."""
    for name, start, end in _boxes(data, 0, len(data)):
        if name != b"meta":
            continue
        for inner, at, until in _boxes(data, start + 4, end):
            if inner != b"iinf" or at >= until:
                continue
            first = at + (6 if data[at] == 0 else 8)  # skips version, flags and count
            for entry, place, stop in _boxes(data, first, until):
                kind = place + {2: 8, 3: 10}.get(data[place] if place < stop else 0, stop)
                if entry == b"infe" and data[kind : kind + 4] == b"Exif":
                    data[kind : kind + 4] = b"none"


def _boxes(data: bytearray, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Names of boxes, with the start and end of their contents."""
    while start + 8 <= end:
        name = bytes(data[start + 4 : start + 8])
        size = int.from_bytes(data[start : start + 4], "big")
        head = 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = end if size == 0 else start + size
        if stop < start + head or stop > end:
            return
        yield name, start + head, stop
        start = stop
