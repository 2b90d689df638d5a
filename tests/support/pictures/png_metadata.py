"""PNG files with ancillary chunks, orientation among them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pictures.case import (
    Case,
    Pixels,
    damaged,
    random_samples,
)
from pictures.exif import STORED, exif_bytes, exif_variants, xmp_bytes
from pictures.png import png, png_chunk, shorts


def png_oddities() -> Iterator[Case]:
    """Chunks that are damaged, misplaced or meaningless, around the same pixels."""
    rgb = random_samples(8, 5, 7, 3).astype(np.uint8)
    noise = np.random.default_rng(3).bytes(1 << 20)
    long = zlib.compress(b"word " * 300_000)
    for name, chunks in {
        "1.5 MB of packed text": [(b"zTXt", b"Comment\0\0" + long)],
        "1.5 MB of packed international text": [(b"iTXt", b"parameters\0\1\0\0\0" + long)],
        "many texts": [(b"tEXt", b"Comment\0" + noise[:9000])] * 1200,
        "2.2 MB of colour profile": [(b"iCCP", b"ICC\0\0" + zlib.compress(b"profile" * 320_000))],
        "a damaged profile": [(b"iCCP", b"ICC\0\7" + noise[:99])],
        "a profile that is empty": [(b"iCCP", b"")],
        "a text of no method": [(b"zTXt", b"Comment\0\x09abc")],
        "an XMP of no use": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + noise[:99])],
        "an XMP cut": [(b"iTXt", b"XML:com.adobe.xmp\0\1")],
        "a raw profile of no use": [(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyz")],
        "EXIF that is none": [(b"eXIf", noise[:999])],
        "EXIF that is empty": [(b"eXIf", b"")],
        "EXIF prefixed as in JPEG": [(b"eXIf", b"Exif\0\0" + exif_bytes(6))],
        "short chunks": [(name, b"") for name in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME")],
        "a transparent colour of another kind": [(b"tRNS", b"\0\7")],
        "private chunks": [(b"prVt", noise[:99]), (b"npMx", b"")],
        "an animation that is broken": [(b"acTL", b"\0\0\0\0"), (b"fcTL", b"12")],
    }.items():
        yield Case(f"png with {name}", png(rgb, 8, 2, *chunks), rgb)
        if name != "a transparent colour of another kind":
            yield Case(f"png followed by {name}", png(rgb, 8, 2, after=chunks), rgb)
    late = [(b"tRNS", shorts(*map(int, rgb[0, 0])))]
    yield Case("png with a transparent colour too late", png(rgb, 8, 2, after=late), rgb)
    whole = png(rgb, 8, 2, (b"eXIf", exif_bytes(6)))
    place = whole.index(b"eXIf")
    yield Case("png with a wrong checksum of EXIF", damaged(whole, place + 10), rgb)
    yield Case("png without an end", whole[:-12], np.rot90(rgb, -1))
    yield Case("png cut before the end of its pixels' zlib stream", whole[:-18], np.rot90(rgb, -1))
    for depth, color, channels in ((8, 2, 3), (16, 6, 4), (1, 0, 1), (8, 3, 1)):
        for interlaced in (False, True):
            few = png(
                random_samples(depth, 5, 7, channels),
                depth,
                color,
                (b"PLTE", noise[:768]),
                interlaced=interlaced,
            )
            header = png_chunk(b"IHDR", few[16:20] + struct.pack(">I", 9) + few[24:29])
            tall = few[:8] + header + few[33:]
            yield Case(
                f"png of color {color} with fewer rows than it says", tall, "cannot be decoded"
            )
    yield Case("png with a wrong checksum of pixels", damaged(whole, len(whole) - 14), "checksum")
    yield Case("png with an unknown critical chunk", png(rgb, 8, 2, (b"ABCD", b"")), "ABCD")
    first = [(b"CgBI", b"\x50\0\x20\x02")]
    yield Case("png as Apple's tools pack it", png(rgb, 8, 2, first=first), "header")
    indices = random_samples(8, 3, 3)
    yield Case("png without its palette", png(indices, 8, 3), "palette")
    yield Case("png with an odd palette", png(indices, 8, 3, (b"PLTE", b"1234")), "palette")
    yield Case("png of 16-bit indices", png(indices, 16, 3, (b"PLTE", b"123")), "header")
    frame = struct.pack(">IIIIIHHBB", 0, 7, 5, 0, 0, 1, 1, 0, 0)
    other = struct.pack(">IIIIIHHBB", 1, 7, 5, 0, 0, 1, 1, 0, 0)
    data = zlib.compress((b"\0" + b"\xff" * 21) * 5)
    rest = [(b"fcTL", other), (b"fdAT", b"\0\0\0\2" + data)]
    animated = png(rgb, 8, 2, (b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", frame), after=rest)
    yield Case("png animated", animated, rgb)
    apart = png(rgb, 8, 2, (b"acTL", struct.pack(">II", 2, 0)), after=[(b"fcTL", frame), *rest[1:]])
    yield Case("png animated beside its default image", apart, rgb)


def turned_png(turn: int, *before: tuple[bytes, bytes], **more: Any) -> tuple[bytes, Pixels]:
    upright = random_samples(8, 4, 6, 3).astype(np.uint8)
    return png(STORED[turn](upright), 8, 2, *before, **more), upright


def xmp_text(packet: bytes, pack: bool) -> tuple[bytes, bytes]:
    head = b"XML:com.adobe.xmp\0" + bytes([pack, 0]) + b"en\0\0"
    return b"iTXt", head + (zlib.compress(packet) if pack else packet)


def png_orientations() -> Iterator[Case]:
    for turn in range(1, 9):
        yield Case(f"png turn {turn}", *turned_png(turn, (b"eXIf", exif_bytes(turn))))
        after = [(b"eXIf", exif_bytes(turn, "<"))]
        yield Case(f"png turn {turn} after pixels", *turned_png(turn, after=after))
    for name, (exif, xmp, turn) in exif_variants().items():
        chunks = [(b"eXIf", exif)] * bool(exif) + [xmp_text(xmp, pack=len(xmp) % 2 == 0)] * bool(
            xmp
        )
        yield Case(f"png EXIF: {name}", *turned_png(turn, *chunks))
    prefixed = (b"Exif\0\0" + exif_bytes(6)).hex()
    for key in (b"tEXt", b"zTXt"):
        text = f"\nexif\n      32\n{prefixed[:40]}\n{prefixed[40:]}\n".encode()
        body = b"\0" + zlib.compress(text) if key == b"zTXt" else text
        chunk = (key, b"Raw profile type exif\0" + body)
        yield Case(f"png EXIF as text in {key.decode()}", *turned_png(6, chunk))
        first = (b"eXIf", exif_bytes(3))
        yield Case(f"png EXIF before text in {key.decode()}", *turned_png(3, chunk, first))
    two = [(b"eXIf", exif_bytes(3)), (b"eXIf", exif_bytes(6))]
    yield Case("png EXIF twice", *turned_png(3, *two))
    packed_text = (
        b"zTXt",
        b"XML:com.adobe.xmp\0\0" + zlib.compress(xmp_bytes('tiff:Orientation="8"')),
    )
    yield Case("png XMP as packed text", *turned_png(8, packed_text))
    many = [(b"tEXt", b"Comment\0x")] * 1500
    yield Case(
        "png XMP after many texts",
        *turned_png(6, *many, xmp_text(xmp_bytes('tiff:Orientation="6"'), True)),
    )
