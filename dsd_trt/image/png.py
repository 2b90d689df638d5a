"""PNG by its specification: exact samples, transparent colours, only the needed chunks.

Pillow reads every chunk and refuses an image for a long text chunk. It compares transparent colours
with samples of another depth, and truncates 16 bits to 8. Pillow therefore gets only the chunks of
the pixels. `engines/cpp/src/png.cpp` is the same in C++.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsd_trt.errors import ImageError
from dsd_trt.image.orientation import orientation, without_prefix
from dsd_trt.image.picture import Picture, check_size, open_as, samples, to_8_bits

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_DEPTHS = {
    _GREY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGB_ALPHA: (8, 16),
}
# First column, first row, column step and row step of each interlacing pass.
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
_LONGEST_TEXT = 1 << 24
"""Longest text chunk searched for an orientation, in bytes, compressed or not."""

_FEWEST = {_GREY: 2, _RGB: 6}  # bytes of a transparent colour


@dataclass
class _Chunks:
    """Content of a file's chunks that affects pixels or orientation."""

    header: bytes = b""
    palette: bytes = b""
    transparent: bytes = b""
    pixels: list[bytes] = field(default_factory=list)  # parts of one zlib stream
    exif: bytes = b""
    raw_exif: bytes = b""
    xmp: bytes = b""

    @property
    def size(self) -> tuple[int, int]:
        width, height = struct.unpack_from(">II", self.header)
        return width, height

    @property
    def depth(self) -> int:
        return self.header[8]

    @property
    def color(self) -> int:
        return self.header[9]

    @property
    def interlaced(self) -> bool:
        return self.header[12] == 1


def read(stream: BinaryIO, max_pixels: int) -> Picture:
    """Decode the image; the default image of an animation, as decoders without animation do."""
    chunks = _read_chunks(stream, max_pixels)
    exif = chunks.exif or without_prefix(chunks.raw_exif)
    return Picture(_decode(chunks, max_pixels), orientation(exif, chunks.xmp))


def _damaged(what: str) -> NoReturn:
    raise ImageError(f"cannot be decoded: {what}")


def _walk(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, position and declared length of every chunk."""
    place = len(_SIGNATURE)
    while True:
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        length = int.from_bytes(head[:4], "big")
        yield head[4:], place + 8, length
        place += 12 + length


def _read_chunks(stream: BinaryIO, max_pixels: int) -> _Chunks:
    chunks = _Chunks()
    ended = False  # pixel chunks must be consecutive
    for name, place, length in _walk(stream):
        if not (name.isalpha() and name.isascii()) or length >= 1 << 31:
            if not chunks.pixels:
                _damaged("no chunk where one should be")
            break  # the pixels are complete anyway
        critical = name[:1].isupper()
        if not chunks.header and name != b"IHDR":
            _damaged("the header is missing")
        if name == b"IHDR":
            if chunks.header:
                _damaged("two headers")
            chunks.header = _checked_header(_read(stream, name, place, length))
            check_size(chunks.size, max_pixels)
        elif name == b"IDAT":
            if not ended:
                chunks.pixels.append(_read(stream, name, place, length, whole=False))
        elif name == b"PLTE":
            if chunks.color == _PALETTE and not chunks.pixels:
                if chunks.palette:
                    _damaged("two palettes")
                chunks.palette = _checked_palette(_read(stream, name, place, length))
        elif critical:
            _damaged(f"{name.decode()} is no chunk that is known")
        elif length <= _LONGEST_TEXT:
            _read_ancillary(chunks, stream, name, place, length)
        ended = ended or (bool(chunks.pixels) and name != b"IDAT")
    if not chunks.pixels:
        _damaged("image file is truncated")
    if chunks.color == _PALETTE and not chunks.palette:
        _damaged("the palette is missing")
    return chunks


def _read(stream: BinaryIO, name: bytes, place: int, length: int, whole: bool = True) -> bytes:
    """A chunk that pixels need; one not needed whole may be truncated."""
    stream.seek(place)
    body = stream.read(length)
    checksum = stream.read(4)
    if len(body) < length or len(checksum) < 4:
        if whole:
            _damaged("image file is truncated")
    elif zlib.crc32(name + body) != int.from_bytes(checksum, "big"):
        _damaged(f"wrong checksum in {name.decode()}")
    return body


def _read_ancillary(
    chunks: _Chunks, stream: BinaryIO, name: bytes, place: int, length: int
) -> None:
    """Read an optional chunk; a damaged one is ignored."""
    if name not in (b"tRNS", b"eXIf", *_TEXTS):
        return
    try:
        body = _read(stream, name, place, length)
    except ImageError:
        return
    if name == b"tRNS":
        if not chunks.pixels and not chunks.transparent:
            chunks.transparent = _checked_transparency(chunks, body)
    elif name == b"eXIf":
        chunks.exif = chunks.exif or body
    else:
        keyword, _, rest = body.partition(b"\0")
        if keyword == _XMP and not chunks.xmp:
            chunks.xmp = _text(name, rest)
        elif keyword == _RAW_EXIF and not chunks.raw_exif:
            chunks.raw_exif = _from_hexadecimal(_text(name, rest))


def _text(name: bytes, body: bytes) -> bytes:
    """Text after the keyword of a text chunk; empty if damaged."""
    packed, method = False, b"\0"
    if name == b"zTXt":
        packed, method, body = True, body[:1], body[1:]
    elif name == b"iTXt":
        packed, method = body[:1] != b"\0", body[1:2]
        _language, _, body = body[2:].partition(b"\0")
        _keyword, _, body = body.partition(b"\0")
    if not packed:
        return body
    try:
        return zlib.decompressobj().decompress(body, _LONGEST_TEXT) if method == b"\0" else b""
    except zlib.error:
        return b""


def _from_hexadecimal(text: bytes) -> bytes:
    """Bytes from hexadecimal text after three lines: an empty one, a name and a length."""
    lines = text.split(b"\n", 3)
    try:
        return bytes.fromhex(lines[3].decode("ascii")) if len(lines) == 4 else b""
    except ValueError:
        return b""


def _checked_header(header: bytes) -> bytes:
    if len(header) != 13:
        _damaged("the header is damaged")
    depth, color, packing, filters, interlace = header[8:]
    if depth not in _DEPTHS.get(color, ()) or packing or filters or interlace > 1:
        _damaged("the header is damaged")
    return header


def _checked_palette(palette: bytes) -> bytes:
    if len(palette) % 3 or not 0 < len(palette) <= 768:
        _damaged("the palette is damaged")
    return palette


def _checked_transparency(chunks: _Chunks, body: bytes) -> bytes:
    """Content of the transparency chunk; empty if it does not fit the colour type."""
    if chunks.color == _PALETTE:
        return body if len(body) <= len(chunks.palette) // 3 else b""
    return body if len(body) == _FEWEST.get(chunks.color) else b""


def _decode(chunks: _Chunks, max_pixels: int) -> Image.Image:
    depth, color = chunks.depth, chunks.color
    if depth < 16 and (color == _PALETTE or not chunks.transparent):
        image = _open(chunks, max_pixels)
        image.load()
        last = Image.new(image.mode, (image.width, 1))
        last.paste(image, (0, 1 - image.height))  # cropping would warn about large images
        if chunks.interlaced or last.getbbox(alpha_only=False) is None:
            _check_complete(chunks)  # Pillow leaves missing rows black
        return _from_palette(chunks, image) if color == _PALETTE else image
    _check_complete(chunks)
    stored = _all_samples(chunks, max_pixels)  # (height, width, channels)
    scaled = to_8_bits(stored, 2**depth - 1)
    if chunks.transparent:
        # Only the low bits of a transparent colour count.
        key = np.frombuffer(chunks.transparent, ">u2") & (2**depth - 1)
        opaque = (stored != key).any(axis=2, keepdims=True)
        scaled = np.concatenate([scaled, 255 * opaque.astype(np.uint8)], axis=2)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[scaled.shape[2]]
    return Image.merge(mode, [Image.fromarray(plane) for plane in np.moveaxis(scaled, 2, 0)])


def _check_complete(chunks: _Chunks) -> None:
    """Refuse pixels whose zlib stream is truncated."""
    channels = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}[chunks.color]
    width, height = chunks.size
    missing = 0
    for x, y, across, down in _ADAM7 if chunks.interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and rows > 0:
            missing += rows * (1 + (columns * channels * chunks.depth + 7) // 8)
    stream = zlib.decompressobj()
    for piece in chunks.pixels:
        packed = piece
        while packed and missing > 0:
            # Read only the missing bytes: later data may be damaged.
            missing -= len(stream.decompress(packed, min(missing, 1 << 20)))
            packed = stream.unconsumed_tail
    if missing > 0:
        _damaged("image file is truncated")


def _from_palette(chunks: _Chunks, image: Image.Image) -> Image.Image:
    """Colours of palette indices; indices beyond the palette are black, as decoders recover."""
    image.putpalette(chunks.palette.ljust(768, b"\0"))
    if chunks.transparent:
        image.info["transparency"] = chunks.transparent
    return image


def _all_samples(chunks: _Chunks, max_pixels: int) -> NDArray[np.int32]:
    """Stored samples of all pixels, (height, width, channels)."""
    depth, color = chunks.depth, chunks.color
    if depth < 16:
        stored = samples(_open(chunks, max_pixels))
        # Pillow scales greys below 8 bits, and returns 1-bit ones as booleans.
        stored = stored // (255 // (2**depth - 1)) if 1 < depth < 8 else stored
    elif color in (_GREY, _GREY_ALPHA):
        # 16-bit grey has the same layout as 8-bit grey with alpha, and so on.
        twice = {_GREY: _GREY_ALPHA, _GREY_ALPHA: _RGB_ALPHA}[color]
        halves = samples(_open(chunks, max_pixels, bytes([8, twice])))
        stored = halves[..., ::2] * 256 + halves[..., 1::2]
    else:
        mode = "RGB" if color == _RGB else "RGBA"
        high, low = (
            samples(_open(chunks, max_pixels), f"{mode};16{end}")
            for end in "BL"  # the two byte orders give the high and the low bytes
        )
        stored = high * 256 + low
    return stored.reshape(*stored.shape[:2], -1)


def _open(chunks: _Chunks, max_pixels: int, kind: bytes = b"") -> Image.Image:
    """Open the pixel chunks with Pillow; `kind` replaces bit depth and colour type."""
    header = chunks.header[:8] + (kind or chunks.header[8:10]) + chunks.header[10:]
    # Pillow requires a palette for indices; its colours do not matter.
    palette = [(b"PLTE", chunks.palette)] if chunks.color == _PALETTE else []
    stream = BytesIO()
    stream.write(_SIGNATURE)
    for name, body in (
        (b"IHDR", header),
        *palette,
        *((b"IDAT", piece) for piece in chunks.pixels),
        (b"IEND", b""),
    ):
        stream.write(struct.pack(">I", len(body)) + name)
        stream.write(body)
        stream.write(struct.pack(">I", zlib.crc32(name + body)))
    stream.seek(0, os.SEEK_SET)
    return open_as("PNG", stream, max_pixels)
