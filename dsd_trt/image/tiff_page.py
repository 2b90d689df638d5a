"""Directory of a TIFF file's first page, read, and rewritten with only the needed tags."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from io import BytesIO
from typing import BinaryIO

from dsd_trt.errors import ImageError


class Tag(IntEnum):
    """Tags that affect pixels, and two for orientation."""

    WIDTH, LENGTH, BITS, COMPRESSION = 256, 257, 258, 259
    PHOTOMETRIC, FILL_ORDER, OFFSETS, ORIENTATION = 262, 266, 273, 274
    SAMPLES, ROWS, COUNTS, PLANAR = 277, 278, 279, 284
    FAX_3, FAX_4, PREDICTOR, COLORS = 292, 293, 317, 320
    TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS = 322, 323, 324, 325
    INKS, INK_COUNT, EXTRA, FORMAT, JPEG_TABLES = 332, 334, 338, 339, 347
    COEFFICIENTS, SUBSAMPLING, POSITIONING, RANGES = 529, 530, 531, 532
    XMP, MEDIA_PHOTO = 700, 48129


_OLD_JPEG = range(512, 522)  # tags of compression 6, which locate its data
_WANTED = {*Tag, *_OLD_JPEG}
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_BYTES = (1, 2, 7)
_LISTS = {Tag.BITS, Tag.OFFSETS, Tag.COUNTS, Tag.COLORS, Tag.TILE_OFFSETS, Tag.TILE_COUNTS}
_LISTS |= {Tag.EXTRA, Tag.FORMAT, Tag.COEFFICIENTS, Tag.SUBSAMPLING, Tag.RANGES, *_OLD_JPEG}
_RATIONAL = 5

Values = tuple[int, ...]


@dataclass(frozen=True)
class Page:
    """Values of a directory's tags, and the byte order of its file."""

    order: str  # format of the struct module
    tags: dict[int, Values]  # rationals: numerator and denominator
    tables: bytes = b""
    xmp: bytes = b""
    orientation: int | None = None

    def get(self, tag: int, default: int) -> int:
        """First value of a tag."""
        return self.tags.get(tag, (default,))[0]

    def second(self, tag: int, default: int) -> int:
        """Second value of a tag."""
        return (*self.tags.get(tag, (default,)), default)[1]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.get(Tag.WIDTH, 0), self.get(Tag.LENGTH, 0)

    def with_tag(self, tag: int, *values: int) -> Page:
        """Copy of the page with one tag changed, or removed if there are no values."""
        others = {name: them for name, them in self.tags.items() if name != tag}
        return replace(self, tags=others | ({tag: values} if values else {}))

    def with_order(self, order: str) -> Page:
        """Copy of the page with another byte order."""
        return replace(self, order=order)


def read_page(stream: BinaryIO) -> Page:
    """Read the first directory; damaged tags are ignored unless pixels need them."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in head[2:4]
    try:
        if big:
            (place,) = struct.unpack_from(f"{order}Q", head, 8)
        else:
            (place,) = struct.unpack_from(f"{order}I", head, 4)
        return _page(order, dict(reversed(list(_entries(stream, size, order, big, place)))))
    except (struct.error, OverflowError):
        raise ImageError("cannot be decoded: image file is truncated") from None


def _entries(
    stream: BinaryIO, size: int, order: str, big: bool, place: int
) -> Iterator[tuple[int, tuple[int, int, bytes]]]:
    """Type, count and bytes of every needed tag."""
    head, inline = ("Q", 8) if big else ("H", 4)
    entry = struct.Struct(f"{order}HHQ8s" if big else f"{order}HHI4s")
    stream.seek(place)
    (count,) = struct.unpack(order + head, stream.read(struct.calcsize(head)))
    directory = stream.read(min(count, 65535) * entry.size)
    for at in range(0, len(directory) - entry.size + 1, entry.size):
        tag, kind, values, data = entry.unpack_from(directory, at)
        if tag not in _WANTED:
            continue
        width = {2: 1, 7: 1, _RATIONAL: 8}.get(kind) or struct.calcsize(_NUMBERS.get(kind, "B"))
        length = values * width
        if length > inline:
            (offset,) = struct.unpack(f"{order}{'Q' if big else 'I'}", data)
            if offset + length > size:
                continue
            stream.seek(offset)
            data = stream.read(length)
        yield tag, (kind, values, data[:length])


def _page(order: str, entries: dict[int, tuple[int, int, bytes]]) -> Page:
    tags = {}
    tables = xmp = b""
    orientation = None
    for tag, (kind, count, data) in entries.items():
        numbers: Values = ()
        if kind in _NUMBERS:
            numbers = struct.unpack(f"{order}{count}{_NUMBERS[kind]}", data)
        elif kind == _RATIONAL:
            numbers = struct.unpack(f"{order}{2 * count}I", data)
        if tag == Tag.ORIENTATION:
            orientation = numbers[0] if len(numbers) == 1 and kind != _RATIONAL else 0
        elif tag == Tag.XMP:
            xmp = data if kind in _BYTES else b""
        elif tag == Tag.JPEG_TABLES:
            tables = data if kind in _BYTES else b""
        elif numbers:
            tags[tag] = numbers if tag in _LISTS else numbers[:1]
    return Page(order, tags, tables, xmp, orientation)


def rewrite(stream: BinaryIO, page: Page) -> BytesIO:
    """A file with only this page."""
    out = BytesIO()
    page = _copy_data(stream, page, out)
    place = out.seek(0, os.SEEK_END)
    place += out.write(b"\0" * (place % 2))
    entries, beyond = [], b""
    start = place + 2 + 12 * (len(page.tags) + bool(page.tables)) + 4  # end of the directory
    for tag, kind, count, data in sorted(_encoded(page)):
        if len(data) > 4:
            entries.append(struct.pack(f"{page.order}HHII", tag, kind, count, start + len(beyond)))
            beyond += data + b"\0" * (len(data) % 2)
        else:
            entries.append(struct.pack(f"{page.order}HHI4s", tag, kind, count, data))
    out.write(struct.pack(f"{page.order}H", len(entries)) + b"".join(entries) + b"\0" * 4 + beyond)
    out.seek(0)
    out.write((b"II" if page.order == "<" else b"MM") + struct.pack(f"{page.order}HI", 42, place))
    return out


def _encoded(page: Page) -> Iterator[tuple[int, int, int, bytes]]:
    for tag, values in page.tags.items():
        rational = tag in (Tag.COEFFICIENTS, Tag.RANGES)
        kind = _RATIONAL if rational else 3 if max(values) < 1 << 16 else 4
        if max(values) >= 1 << 32:
            raise ImageError("its data are larger than 4 GB")
        data = struct.pack(f"{page.order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        yield tag, kind, len(values) // (2 if rational else 1), data
    if page.tables:
        yield Tag.JPEG_TABLES, 7, len(page.tables), page.tables


def _copy_data(stream: BinaryIO, page: Page, out: BytesIO) -> Page:
    """Write the page's strips or tiles after space for a header; return the updated page."""
    tiled = Tag.TILE_OFFSETS in page.tags
    places, counts = (Tag.TILE_OFFSETS, Tag.TILE_COUNTS) if tiled else (Tag.OFFSETS, Tag.COUNTS)
    offsets, lengths = page.tags.get(places, ()), page.tags.get(counts, ())
    unpacked = _unpacked_length(page, tiled) if page.get(Tag.COMPRESSION, 1) == 1 else 0
    if unpacked:  # the declared length is not always correct
        lengths = (unpacked,) * len(offsets)
    size = stream.seek(0, os.SEEK_END)
    if len(offsets) != len(lengths) or 0 in lengths or sum(lengths) > size + unpacked:
        # The position of the data is unclear: keep everything.
        stream.seek(0)
        out.write(stream.read())
        return page
    out.write(b"\0" * 8)
    moved = []
    for offset, length in zip(offsets, lengths, strict=True):
        stream.seek(offset)
        moved.append(out.tell())
        if out.write(stream.read(length)) < length and not unpacked:
            raise ImageError("cannot be decoded: image file is truncated")
    return page.with_tag(places, *moved).with_tag(counts, *lengths)


def _unpacked_length(page: Page, tiled: bool) -> int:
    """Length of an uncompressed strip or tile in bytes."""
    channels = page.get(Tag.SAMPLES, 1)
    bits = page.tags.get(Tag.BITS, (1,))
    total = max(sum(bits), bits[0] * channels) if page.get(Tag.PLANAR, 1) == 1 else bits[0]
    width, height = page.size
    if tiled:
        width, height = page.get(Tag.TILE_WIDTH, width), page.get(Tag.TILE_LENGTH, height)
    else:
        height = min(height, page.get(Tag.ROWS, height))
    return (width * total + 7) // 8 * height
