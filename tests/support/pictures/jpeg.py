"""JPEG files by Pillow, with segments inserted by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from pictures.case import (
    Case,
    as_rgb,
    encode,
    scaled,
    smooth,
)
from pictures.exif import STORED, exif_bytes, exif_variants, xmp_bytes


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(content: bytes, *segments: bytes) -> bytes:
    """Insert segments at the start of a JPEG file."""
    return content[:2] + b"".join(segments) + content[2:]


EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def jpeg_cases() -> Iterator[Case]:
    upright = smooth(48, 64, 3)
    rgb = Image.fromarray(upright)
    best: dict[str, Any] = {"quality": 98, "subsampling": 0}
    plain = encode(rgb, "JPEG", **best)
    yield Case("jpeg rgb", plain, upright, 6)
    yield Case("jpeg progressive", encode(rgb, "JPEG", progressive=True, **best), upright, 6)
    yield Case(
        "jpeg grey",
        encode(rgb.convert("L"), "JPEG", quality=98),
        as_rgb(np.asarray(rgb.convert("L"))),
        6,
    )
    inks = smooth(48, 64, 4)
    printed = scaled(
        (255 - inks[..., :3].astype(int)) * (255 - inks[..., 3:].astype(int)), 255 * 255
    )
    cmyk = encode(Image.fromarray(inks, "CMYK"), "JPEG", **best)
    yield Case("jpeg cmyk, inverted as Adobe does", cmyk, printed, 8)
    # YCCK is YCbCr of the inverted inks' complements, and the same black.
    luma = np.asarray(Image.fromarray(inks[..., :3]).convert("YCbCr"))
    ycck = encode(Image.fromarray(np.dstack([255 - luma, inks[..., 3]]), "CMYK"), "JPEG", **best)
    mark = ycck.index(b"Adobe") + 11
    yield Case("jpeg ycck", ycck[:mark] + b"\2" + ycck[mark + 1 :], printed, 12)
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")
    bare = plain[:2] + plain[plain.index(b"\xff\xdb") :]  # without JFIF
    planes = encode(Image.fromarray(np.asarray(rgb), "YCbCr"), "JPEG", **best)
    stored = planes[:2] + planes[planes.index(b"\xff\xdb") :]
    yield Case("jpeg of stored RGB, as Adobe marks it", jpeg_with(stored, adobe), upright, 6)
    yield Case("jpeg without JFIF", bare, upright, 6)
    noise = np.random.default_rng(5).bytes(60000)
    for name, segments in {
        "4 MB of segments": [segment(0xE2 + n % 10, noise) for n in range(70)],
        "a profile cut": [segment(0xE2, b"ICC_PROFILE\0")],
        "JFIF cut": [segment(0xE0, b"JFIF")],
        "Adobe cut": [segment(0xEE, b"Adobe")],
        "Photoshop cut": [segment(0xED, b"Photoshop 3.0\x008BIM\4")],
        "EXIF of no use": [segment(0xE1, EXIF + noise[:999])],
        "EXIF empty": [segment(0xE1, EXIF)],
        "a resolution of no use": [
            segment(0xE1, EXIF + exif_bytes(1).replace(b"\x01\x12", b"\x01\x1a"))
        ],
        "XMP of no use": [segment(0xE1, XMP + noise[:999])],
        "several pictures of no use": [segment(0xE2, b"MPF\0" + noise[:99])],
        "FlashPix cut": [segment(0xE2, b"FPXR\0")],
        "comments": [segment(0xFE, noise)] * 3,
        "markers of no use": [b"\xff\x01\xff\xd3"],
        "bytes of no use": [segment(0xE5, b""), b"\0\0words"],
        "empty segments": [segment(0xE0 + n, b"") for n in range(16)],
    }.items():
        yield Case(f"jpeg with {name}", jpeg_with(plain, *segments), upright, 6)
    turned = {
        turn: encode(Image.fromarray(np.ascontiguousarray(put(upright))), "JPEG", **best)
        for turn, put in STORED.items()
    }
    for turn, content in turned.items():
        with_exif = jpeg_with(content, segment(0xE1, EXIF + exif_bytes(turn)))
        yield Case(f"jpeg turn {turn}", with_exif, upright, 6)
    for name, (exif, xmp, turn) in exif_variants().items():
        segments = [segment(0xE1, EXIF + exif)] * bool(exif) + [segment(0xE1, XMP + xmp)] * bool(
            xmp
        )
        yield Case(f"jpeg EXIF: {name}", jpeg_with(turned[turn], *segments), upright, 6)
    for name, segments in {
        "twice": [segment(0xE1, EXIF + exif_bytes(6)), segment(0xE1, EXIF + exif_bytes(3))],
        "after XMP": [
            segment(0xE1, XMP + xmp_bytes('tiff:Orientation="3"')),
            segment(0xE1, EXIF + exif_bytes(6)),
        ],
        "in two segments": [
            segment(0xE1, EXIF + exif_bytes(6)[:9]),
            segment(0xE1, EXIF + exif_bytes(6)[9:]),
        ],
        "prefixed twice": [segment(0xE1, EXIF * 2 + exif_bytes(6))],
        "after other segments": [
            segment(0xE1, b"another program's"),
            segment(0xE5, EXIF + exif_bytes(3)),
            b"\xff\xff" + segment(0xE1, EXIF + exif_bytes(6)),
        ],
        "as two XMP": [
            segment(0xE1, XMP + xmp_bytes(f'tiff:Orientation="{turn}"')) for turn in (6, 3)
        ],
    }.items():
        yield Case(f"jpeg EXIF {name}", jpeg_with(turned[6], *segments), upright, 6)
