"""Files in the other formats that Pillow writes; variants that it does not write, by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from pictures.case import (
    Case,
    Samples,
    as_rgb,
    encode,
    on_white,
    random_samples,
    scaled,
    smooth,
)
from pictures.exif import STORED, exif_bytes, exif_variants


def bmp(
    pixels: bytes,
    size: tuple[int, int],
    bits: int,
    *,
    compression: int = 0,
    masks: tuple[int, ...] = (),
    palette: bytes = b"",
    header: int = 40,
) -> bytes:
    """A BMP file of rows that run from the bottom up and are padded already."""
    height, width = size
    colors = len(palette) // 4
    info = struct.pack(
        "<IiiHHIIiiII", header, width, height, 1, bits, compression, 0, 0, 0, colors, 0
    )
    info += struct.pack(f"<{len(masks)}I", *masks)
    info = info.ljust(header, b"\0") if header > 40 else info
    offset = 14 + len(info) + len(palette)
    return (
        b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + palette + pixels
    )


def bmp_files() -> Iterator[Case]:
    rgba = random_samples(8, 5, 8, 4).astype(np.uint8)
    size = rgba.shape[:2]
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    bottom_up = rgba[::-1]
    seen = on_white(rgba[..., :3], rgba[..., 3])
    bgra = bottom_up[..., [2, 1, 0, 3]]
    for header in (56, 108, 124):
        yield Case(
            f"bmp rgba header {header}",
            bmp(bgra.tobytes(), size, 32, compression=3, masks=masks, header=header),
            seen,
        )
        clear = bgra.copy()
        clear[..., 3] = 0
        yield Case(
            f"bmp alpha all zero header {header}",
            bmp(clear.tobytes(), size, 32, compression=3, masks=masks, header=header),
            rgba[..., :3],
        )
    yield Case("bmp 32 bits", bmp(bgra.tobytes(), size, 32), rgba[..., :3])
    yield Case("bmp 24 bits", bmp(bgra[..., :3].tobytes(), size, 24), rgba[..., :3])
    words = random_samples(15, 4, 6)
    parts = np.stack([words >> 10, words >> 5 & 31, words & 31], axis=2)
    content = bmp(words[::-1].astype("<u2").tobytes(), words.shape, 16)
    yield Case("bmp 15 bits", content, scaled(parts, 31), 4)
    yield from _bmp_with_one_bit_of_alpha()
    words = random_samples(16, 4, 6)
    content = bmp(
        words[::-1].astype("<u2").tobytes(),
        words.shape,
        16,
        compression=3,
        masks=(0xF800, 0x7E0, 31),
    )
    parts = np.dstack(
        [scaled(words >> 11, 31), scaled(words >> 5 & 63, 63), scaled(words & 31, 31)]
    )
    yield Case("bmp 16 bits", content, parts, 4)
    indices = random_samples(4, 4, 8)
    colors = random_samples(8, 10, 4).astype(np.uint8)
    table = np.vstack([colors[:, [2, 1, 0]], np.zeros((6, 3), np.uint8)])
    content = bmp(
        indices[::-1].astype(np.uint8).tobytes(), indices.shape, 8, palette=colors.tobytes()
    )
    yield Case("bmp palette too short", content, table[indices])
    yield Case(
        "bmp grey by Pillow", encode(Image.fromarray(rgba[..., 0]), "BMP"), as_rgb(rgba[..., 0])
    )
    bits = random_samples(1, 5, 9)
    yield Case("bmp 1 bit", encode(Image.fromarray(bits.astype(bool)), "BMP"), as_rgb(255 * bits))
    # Four of 5, then the end of the line; 1, 2, 3 as they are.
    run = b"\4\5\0\0" + b"\0\3\1\2\3\0\1\4\0\1"
    content = bmp(run, (2, 4), 8, compression=1, palette=colors.tobytes())
    packed = np.array([[1, 2, 3, 4], [5, 5, 5, 5]])
    yield Case("bmp run lengths", content, table[packed])


def _bmp_with_one_bit_of_alpha() -> Iterator[Case]:
    words = random_samples(16, 4, 5)  # rows of 10 bytes, padded to 12
    color = scaled(np.stack([words >> 10 & 31, words >> 5 & 31, words & 31], axis=2), 31)
    masks = (0x7C00, 0x3E0, 0x1F, 0x8000)
    for header in (56, 108, 124):
        for name, shown, stored, used in (
            ("alpha", on_white(color, 255 * (words >> 15)), words, masks),
            ("alpha all zero", color, words & 0x7FFF, masks),
            ("no alpha", color, words, masks[:3]),
        ):
            rows = np.pad(stored, ((0, 0), (0, 1))).astype("<u2")
            for direction in (-1, 1):  # from the bottom up, or from the top down
                content = bmp(
                    rows[::direction].tobytes(),
                    (4 * -direction, 5),
                    16,
                    compression=3,
                    masks=used,
                    header=header,
                )
                yield Case(f"bmp 15 bits {name} header {header} {direction}", content, shown, 4)
                if name == "alpha" and header == 56:
                    yield Case("bmp 15 bits cut", content[:-20], "truncated")


def gif_blocks(data: bytes) -> bytes:
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)]
    return b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"


def gif(
    indices: Samples,
    palette: Samples,
    *,
    screen: tuple[int, int, int, int],
    transparent: int | None = None,
    background: int = 0,
    extensions: bytes = b"",
    local: bool = False,
) -> bytes:
    """One frame at (left, top) on a screen of (width, height); 3 bits, never packed."""
    left, top, width, height = screen
    table = palette.astype(np.uint8).tobytes().ljust(24, b"\0")
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0 if local else 0x82, background, 0)
    control = b""
    if transparent is not None:
        control = b"!\xf9\4" + struct.pack("<BHB", 1, 0, transparent) + b"\0"
    # A clear code before each two samples keeps all codes at 4 bits.
    codes = [code for pair in np.split(indices.ravel(), indices.size // 2) for code in (8, *pair)]
    codes = [*codes, 9, 0][: len(codes) + 1 + len(codes) % 2 + 1]
    nibbles = np.array(codes + [0] * (len(codes) % 2))
    data = (nibbles[::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()
    rows, columns = indices.shape
    frame = b"," + struct.pack("<HHHHB", left, top, columns, rows, 0x82 if local else 0)
    return (
        head
        + b"" * local
        + (b"" if local else table)
        + extensions
        + control
        + frame
        + (table if local else b"")
        + b"\3"
        + gif_blocks(data)
        + b";"
    )


def gif_files() -> Iterator[Case]:
    palette = random_samples(8, 8, 3)
    indices = random_samples(3, 4, 6)
    seen = palette[indices].astype(np.uint8)
    whole = (0, 0, 6, 4)
    yield Case("gif", gif(indices, palette, screen=whole), seen)
    yield Case(
        "gif with a palette of its own", gif(indices, palette, screen=whole, local=True), seen
    )
    keyed = np.where((indices == 3)[..., None], 255, seen).astype(np.uint8)
    yield Case("gif transparent", gif(indices, palette, screen=whole, transparent=3), keyed)
    comments = b"!\xfe" + gif_blocks(b"words " * 100_000)
    yield Case("gif with comments", gif(indices, palette, screen=whole, extensions=comments), seen)
    program = b"!\xff\x0bXMP DataXMP" + gif_blocks(b"<x:xmpmeta/>" * 9999)
    yield Case(
        "gif with a program's data", gif(indices, palette, screen=whole, extensions=program), seen
    )
    offset = (2, 1, 10, 7)
    for background in (0, 5):
        around = np.tile(palette[background].astype(np.uint8), (7, 10, 1))
        around[1:5, 2:8] = seen
        content = gif(indices, palette, screen=offset, background=background)
        yield Case(f"gif in part of its screen, background {background}", content, around)
    around = np.full((7, 10, 3), 255, np.uint8)
    around[1:5, 2:8] = seen
    content = gif(indices, palette, screen=offset, local=True, background=5)
    yield Case("gif in part of a screen without colours", content, around)
    around = around.copy()
    around[1:5, 2:8] = keyed
    content = gif(indices, palette, screen=offset, transparent=3, background=5)
    yield Case("gif transparent in part of its screen", content, around)
    frames = [Image.fromarray(seen).quantize(64), Image.new("P", (6, 4))]
    first = np.asarray(frames[0].convert("RGB"))
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=2)
    yield Case("gif animated", content, first)
    grey = random_samples(8, 4, 6)
    yield Case("gif grey", encode(Image.fromarray(grey.astype(np.uint8)), "GIF"), as_rgb(grey))


def webp() -> Iterator[Case]:
    rgba = random_samples(8, 5, 8, 4).astype(np.uint8)
    rgb = np.ascontiguousarray(rgba[..., :3])
    exact: dict[str, Any] = {"lossless": True, "exact": True}
    yield Case("webp rgb", encode(Image.fromarray(rgb), "WEBP", **exact), rgb)
    yield Case(
        "webp rgba", encode(Image.fromarray(rgba), "WEBP", **exact), on_white(rgb, rgba[..., 3])
    )
    content = encode(
        Image.fromarray(rgb),
        "WEBP",
        save_all=True,
        append_images=[Image.new("RGB", (8, 5))],
        **exact,
    )
    yield Case("webp animated", content, rgb)
    broad = smooth(48, 64, 3)
    yield Case("webp lossy", encode(Image.fromarray(broad), "WEBP", quality=95), broad, 24)
    for turn, put in STORED.items():
        image = Image.fromarray(np.ascontiguousarray(put(rgb)))
        for prefix in (b"", b"Exif\0\0"):
            yield Case(
                f"webp turn {turn}{' prefixed' * bool(prefix)}",
                encode(image, "WEBP", exif=b"Exif\0\0" + prefix + exif_bytes(turn), **exact),
                rgb,
            )
    for name, (exif, xmp, turn) in exif_variants().items():
        image = Image.fromarray(np.ascontiguousarray(STORED[turn](rgb)))
        yield Case(f"webp EXIF: {name}", encode(image, "WEBP", exif=exif, xmp=xmp, **exact), rgb)
    profile = encode(Image.fromarray(rgb), "WEBP", icc_profile=b"profile" * 320_000, **exact)
    yield Case("webp with a profile of no use", profile, rgb)


def avif() -> Iterator[Case]:
    broad = smooth(48, 64, 4)
    rgb = np.ascontiguousarray(broad[..., :3])
    best: dict[str, Any] = {"quality": 100, "subsampling": "4:4:4", "speed": 10}
    yield Case("avif rgb", encode(Image.fromarray(rgb), "AVIF", **best), rgb, 4)
    yield Case(
        "avif rgba", encode(Image.fromarray(broad), "AVIF", **best), on_white(rgb, broad[..., 3]), 4
    )
    for turn, put in STORED.items():
        image = Image.fromarray(np.ascontiguousarray(put(rgb)))
        content = encode(image, "AVIF", exif=exif_bytes(turn), **best)
        yield Case(f"avif turn {turn}", content, rgb, 4)
    valid = encode(Image.fromarray(rgb), "AVIF", exif=exif_of_two_tags(), **best)
    place = valid.index(b"MM\0*\0\0\0\x08")
    for name, fault in {
        "that is no EXIF": b"none",
        "whose directory is beyond the end": b"MM\0*\xff\0\0\0",
    }.items():
        content = valid[:place] + fault + valid[place + len(fault) :]
        yield Case(f"avif with EXIF {name}", content, rgb, 4)
    # The item's own rotation property counts, EXIF's orientation does not.
    declared = valid.replace(b"\x01\x0f\0\2", b"\x01\x12\0\3")
    yield Case("avif turned by EXIF alone", declared, rgb, 4)
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    yield Case(
        "avif turned by XMP alone", encode(Image.fromarray(rgb), "AVIF", xmp=xmp, **best), rgb, 4
    )


def exif_of_two_tags() -> bytes:
    head = b"MM\0*\0\0\0\x08\0\2"
    return head + b"\x01\x0f\0\2\0\0\0\1\0\6\0\0" + b"\x01\x10\0\2\0\0\0\1x\0\0\0" + b"\0\0\0\0"


def jpeg2000() -> Iterator[Case]:
    rgba = random_samples(8, 16, 24, 4).astype(np.uint8)
    rgb = np.ascontiguousarray(rgba[..., :3])
    grey_alpha = np.ascontiguousarray(rgba[..., ::3])
    wide = random_samples(16, 16, 24)
    for kind in ("jp2", "j2k"):
        for name, image, seen in (
            ("rgb", Image.fromarray(rgb), rgb),
            ("rgba", Image.fromarray(rgba), on_white(rgb, rgba[..., 3])),
            ("grey", Image.fromarray(rgb[..., 0]), as_rgb(rgb[..., 0])),
            ("grey alpha", pil("LA", grey_alpha), on_white(as_rgb(rgb[..., 0]), rgba[..., 3])),
            ("grey 16 bits", Image.fromarray(wide.astype(np.uint16)), as_rgb(scaled(wide, 65535))),
        ):
            content = encode(image, "JPEG2000", no_jp2=kind == "j2k", irreversible=False)
            yield Case(f"jpeg2000 {kind} {name}", content, seen)


def pil(mode: str, pixels: Samples) -> Image.Image:
    """Merge bands to a Pillow image of any mode."""
    bands = np.moveaxis(pixels.reshape(*pixels.shape[:2], -1), 2, 0)
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(band)) for band in bands])


def netpbm() -> Iterator[Case]:
    for white in (1, 7, 100, 255, 1000, 4095, 65535):
        samples = np.random.default_rng(white).integers(0, white + 1, (5, 8, 3))
        letter = ">u2" if white > 255 else "u1"
        for kind, values in (("P5", samples[..., 0]), ("P6", samples)):
            head = f"{kind}\n# a comment {'x' * 100_000}\n8 5\n{white}\n".encode()
            eight = scaled(values, white)
            seen = as_rgb(eight) if kind == "P5" else eight
            yield Case(f"ppm {kind} to {white}", head + values.astype(letter).tobytes(), seen, 1)
            plain = {"P5": "P2", "P6": "P3"}[kind]
            text = f"{plain}\n8 5\n{white}\n" + " ".join(map(str, values.ravel())) + "\n"
            yield Case(f"ppm {plain} to {white}", text.encode(), seen, 1)
    bits = random_samples(1, 5, 8)
    rows = b"".join(np.packbits(row).tobytes() for row in bits)
    yield Case("ppm P4", b"P4\n8 5\n" + rows, as_rgb(255 * (1 - bits)))
    digits = "\n".join("".join(map(str, row)) for row in bits)
    yield Case("ppm P1", f"P1\n8 5\n{digits}\n".encode(), as_rgb(255 * (1 - bits)))
    yield Case("ppm of floats", b"Pf\n2 2\n-1.0\n" + b"\0" * 16, "floating-point")
