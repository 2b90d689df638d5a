"""JPEG without the segments that do not affect pixels."""

from __future__ import annotations

from io import BytesIO
from typing import BinaryIO

from dsd_trt.image.orientation import EXIF_PREFIX, orientation, without_prefix
from dsd_trt.image.picture import Picture, open_as

_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
_START, _END, _SCAN, _COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
_JFIF, _EXIF, _ADOBE = 0xE0, 0xE1, 0xEE
_IGNORED = (0x01, *range(0xD0, 0xD8))  # not needed, and has no length


def read(stream: BinaryIO, max_pixels: int) -> Picture:
    """Decode the image; the first one of several (MPO)."""
    kept, exif, xmp = _split(stream)
    image = open_as("JPEG", BytesIO(kept), max_pixels)
    return Picture(image, orientation(without_prefix(exif), xmp))


def _split(stream: BinaryIO) -> tuple[bytes, bytes, bytes]:
    """The segments decoders need, the joined EXIF segments, and the first XMP segment."""
    kept, exif, xmp = [stream.read(2)], b"", b""
    while True:
        marker = _next_marker(stream)
        if marker is None:
            break
        head = bytes([0xFF, marker])
        if marker in _IGNORED:
            continue
        if marker == _START:
            kept.append(head)
            continue
        length = stream.read(2)
        size = int.from_bytes(length, "big") - 2
        if marker in (_SCAN, _END) or len(length) < 2 or size < 0:
            kept += [head, length, stream.read()]
            break
        body = stream.read(size)
        if marker == _EXIF and body.startswith(EXIF_PREFIX):
            exif += body.removeprefix(EXIF_PREFIX)
        elif marker == _EXIF and body.startswith(_XMP_PREFIX):
            xmp = xmp or body.removeprefix(_XMP_PREFIX)
        if _is_needed(marker, body):
            kept += [head, length, body]
    return b"".join(kept), exif, xmp


def _next_marker(stream: BinaryIO) -> int | None:
    """The next marker; other bytes before it are skipped, as decoders do."""
    while byte := stream.read(1):
        if byte != b"\xff":
            continue
        while byte == b"\xff":
            byte = stream.read(1)
        if byte and byte != b"\0":
            return byte[0]
    return None


def _is_needed(marker: int, body: bytes) -> bool:
    """Whether pixels depend on a segment; two application segments affect colours."""
    if marker == _JFIF:
        return len(body) >= 14 and body.startswith(b"JFIF\0")
    if marker == _ADOBE:
        return len(body) >= 12 and body.startswith(b"Adobe")
    return not (_JFIF <= marker <= 0xEF or marker == _COMMENT)
