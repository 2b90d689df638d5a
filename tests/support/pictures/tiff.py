"""TIFF files, written by hand and by Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pictures.case import Case, Pixels, Samples, as_rgb, encode, on_white, random_samples, scaled
from pictures.exif import STORED, xmp_bytes
from pictures.png import packed

Entry = tuple[int, int, Any]  # tag, kind, numbers or bytes
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5


def directory(order: str, entries: Sequence[Entry], place: int, big: bool) -> bytes:
    """An image file directory that starts at `place`, followed by values too long for it."""
    offset, inline = ("Q", 8) if big else ("I", 4)
    start = place + len(entries) * (20 if big else 12) + (16 if big else 6)
    head, beyond = struct.pack(order + ("Q" if big else "H"), len(entries)), b""
    for tag, kind, values in sorted(entries, key=lambda entry: entry[0]):
        count, data = len(values), values
        if not isinstance(values, bytes):
            letter = {1: "B", 3: "H", 4: "I", 5: "I", 16: "Q"}[kind]
            data = struct.pack(f"{order}{count}{letter}", *values)
            count //= 2 if kind == 5 else 1
        if len(data) > inline:
            data, beyond = struct.pack(order + offset, start + len(beyond)), beyond + data
        head += struct.pack(f"{order}HH{offset}", tag, kind, count) + data.ljust(inline, b"\0")
    return head + struct.pack(order + offset, 0) + beyond


def tiff(
    pieces: Sequence[bytes],
    size: tuple[int, int],
    bits: Sequence[int],
    photometric: int,
    *more: Entry,
    order: str = "<",
    big: bool = False,
    rows: int = 0,
    compression: int = 1,
    tiled: bool = False,
) -> bytes:
    """A TIFF file of strips; `size` is (height, width), `rows` the number of rows per strip."""
    places, data = [], b""
    start = 16 if big else 8
    for piece in pieces:
        places.append(start + len(data))
        data += piece + b"\0" * (len(piece) % 2)
    tags: dict[int, Entry] = {
        entry[0]: entry
        for entry in (
            (256, 4, [size[1]]),
            (257, 4, [size[0]]),
            (258, 3, list(bits)),
            (259, 3, [compression]),
            (262, 3, [photometric]),
            (324 if tiled else 273, 4, places),
            (277, 3, [len(bits)]),
            (278, 4, [rows or size[0]]),
            (325 if tiled else 279, 4, [len(piece) for piece in pieces]),
            *more,
        )
    }
    place = start + len(data)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HHQ", 8, 0, place) if big else struct.pack(f"{order}I", place)
    return head + data + directory(order, list(tags.values()), place, big)


def stored(samples: Samples, depth: int, order: str = "<") -> bytes:
    if depth < 16:
        return b"".join(packed(samples.reshape(*samples.shape[:2], -1), depth))
    return samples.astype(f"{order}u{depth // 8}").tobytes()


def tiff_greys() -> Iterator[Case]:
    for depth in (1, 2, 4, 8, 12, 16, 32):
        grey = random_samples(depth, 6, 10)
        seen = scaled(grey, 2**depth - 1)
        for order in "<>":
            for photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
                for pack in (False, True):
                    if depth == 12 and pack:
                        continue  # Pillow cannot
                    data = stored(grey, depth, order)
                    yield Case(
                        f"tiff grey {depth} bits {order} photometric {photometric}"
                        + " packed" * pack,
                        tiff(
                            [zlib.compress(data) if pack else data],
                            grey.shape,
                            [depth],
                            photometric,
                            order=order,
                            compression=8 if pack else 1,
                        ),
                        as_rgb(seen if photometric else 255 - seen),
                    )
    grey = random_samples(16, 6, 10)
    strips = [stored(grey[y : y + 2], 16) for y in (0, 2, 4)]
    yield Case(
        "tiff of strips, big",
        tiff(strips, grey.shape, [16], WHITE_IS_ZERO, rows=2, big=True),
        as_rgb(255 - scaled(grey, 65535)),
    )
    undefined = tiff([stored(grey, 16)], grey.shape, [16], 1, (339, 3, [4]))
    yield Case("tiff of an undefined format", undefined, as_rgb(scaled(grey, 65535)))
    bits = random_samples(1, 20, 30)
    fax = encode(Image.fromarray(bits.astype(bool)), "TIFF", compression="group4")
    yield Case("tiff fax", fax, as_rgb(255 * bits))
    integers = Image.fromarray(grey.astype(np.int32))
    yield Case("tiff of Pillow's integers", encode(integers, "TIFF"), as_rgb(scaled(grey, 65535)))


def tiff_colors() -> Iterator[Case]:
    for depth in (8, 16):
        white = 2**depth - 1
        rgba = random_samples(depth, 6, 10, 4)
        eight = scaled(rgba, white)
        opaque, straight = eight[..., :3], on_white(eight[..., :3], eight[..., 3])
        multiplied = rgba.copy()
        multiplied[..., :3] = rgba[..., :3] * rgba[..., 3:] // white
        part = scaled(multiplied, white).astype(int)
        over = np.clip(part[..., :3] + 255 - part[..., 3:], 0, 255).astype(np.uint8)
        inks = (255 - eight[..., :3].astype(int)) * (255 - eight[..., 3:].astype(int))
        for order in "<>":
            for planar in (1, 2):
                for pack in (False, True):
                    name = f"{depth} bits {order} planar {planar}{' packed' * pack}"
                    for kind, samples, photometric, extra, seen, tolerance in (
                        ("rgb", rgba[..., :3], RGB, None, opaque, 0),
                        ("rgba", rgba, RGB, 2, straight, 0),
                        ("rgb and something", rgba, RGB, 0, opaque, 0),
                        ("rgba premultiplied", multiplied, RGB, 1, over, 0),
                        ("cmyk", rgba, CMYK, None, scaled(inks, 255 * 255), 2),
                        ("grey alpha", rgba[..., ::3], 1, 2, None, 0),
                    ):
                        if seen is None:
                            if depth == 16 and planar == 1:
                                continue  # Pillow cannot
                            seen = on_white(as_rgb(eight[..., 0]), eight[..., 3])
                        channels = samples.shape[2]
                        parts = [samples] if planar == 1 else list(np.moveaxis(samples, 2, 0))
                        pieces = [stored(part, depth, order) for part in parts]
                        yield Case(
                            f"tiff {kind} {name}",
                            tiff(
                                [zlib.compress(it) for it in pieces] if pack else pieces,
                                samples.shape[:2],
                                [depth] * channels,
                                photometric,
                                (284, 3, [planar]),
                                *([(338, 3, [extra])] if extra is not None else []),
                                order=order,
                                compression=8 if pack else 1,
                            ),
                            seen,
                            tolerance,
                        )
    for depth in (8, 16):
        rgb = random_samples(depth, 20, 40, 3)
        padded = np.zeros((32, 48, 3), np.int64)
        padded[:20, :40] = rgb
        for planar in (1, 2):
            parts = [padded] if planar == 1 else list(np.moveaxis(padded, 2, 0))
            tiles = [
                stored(part[y : y + 16, x : x + 16], depth)
                for part in parts
                for y in (0, 16)
                for x in (0, 16, 32)
            ]
            for pack in (False, True):
                pieces = [zlib.compress(tile) for tile in tiles] if pack else tiles
                content = tiff(
                    pieces,
                    (20, 40),
                    [depth] * 3,
                    RGB,
                    *((284, 3, [planar]), (322, 3, [16]), (323, 3, [16])),
                    compression=8 if pack else 1,
                    tiled=True,
                )
                name = f"tiff of tiles {depth} bits planar {planar}{' packed' * pack}"
                yield Case(name, content, scaled(rgb, 2**depth - 1))
    for depth in (1, 2, 4, 8):
        indices, colors = random_samples(depth, 6, 10), random_samples(8, 2**depth, 3)
        table = (320, 3, (colors.T * 257).ravel().tolist())
        yield Case(
            f"tiff palette {depth} bits",
            tiff([stored(indices, depth)], indices.shape, [depth], PALETTE, table),
            colors[indices].astype(np.uint8),
        )
    pixels = random_samples(8, 6, 10, 3).astype(np.uint8)
    picture = Image.fromarray(pixels)
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits"):
        content = encode(picture, "TIFF", compression=compression)
        yield Case(f"tiff rgb {compression}", content, pixels)
    content = encode(picture, "TIFF", save_all=True, append_images=[Image.new("L", (4, 4))])
    yield Case("tiff of two pages", content, pixels)


def tiff_metadata() -> Iterator[Case]:
    rgb = random_samples(8, 6, 10, 3).astype(np.uint8)
    noise = np.random.default_rng(3).bytes(4000)

    def with_entries(*entries: Entry, pixels: Pixels = rgb, **more: Any) -> bytes:
        pixels = np.ascontiguousarray(pixels)
        return tiff([pixels.tobytes()], pixels.shape[:2], [8, 8, 8], RGB, *entries, **more)

    for turn, put in STORED.items():
        yield Case(f"tiff turn {turn}", with_entries((274, 3, [turn]), pixels=put(rgb)), rgb)
        xmp = (700, 1, xmp_bytes(f'tiff:Orientation="{turn}"'))
        yield Case(f"tiff turn {turn} in XMP", with_entries(xmp, pixels=put(rgb)), rgb)
    of_no_use: dict[str, list[Entry]] = {
        "orientation nine": [(274, 3, [9])],
        "orientation in words": [(274, 2, b"top left\0")],
        "two orientations": [(274, 3, [6, 6])],
        "a resolution in words": [(282, 2, b"many\0"), (283, 2, b"many\0"), (296, 3, [3])],
        "EXIF of no use": [(34665, 4, [0xFFFFFF]), (34853, 4, [1])],
        "4 MB of profile": [(34675, 7, noise * 1000)],
        "texts of no use": [(270, 7, noise), (305, 2, noise), (33432, 3, [1, 2, 3])],
        "XMP of no use": [(700, 7, noise)],
        "tags of no kind": [(50000, 99, b"1234"), (50001, 0, b"")],
        "two heights": [(257, 4, [6, 7])],
    }
    for name, entries in of_no_use.items():
        yield Case(f"tiff with {name}", with_entries(*entries), rgb)
    beyond = with_entries((315, 2, noise[:40]))
    place = beyond.index(struct.pack("<HHI", 315, 2, 40)) + 8
    beyond = beyond[:place] + b"\xff\xff\xff\x7f" + beyond[place + 4 :]
    yield Case("tiff with a text beyond the end", beyond, rgb)
    yield Case("tiff with wrong lengths of strips", with_entries((279, 4, [1])), rgb)


def tiff_refused() -> Iterator[Case]:
    floats = random_samples(8, 6, 10).astype(np.float32)
    for bits, values, sample_format, reason in (
        (32, floats, 3, "floating-point"),
        (16, floats, 2, "signed"),
        (8, floats, 2, "signed"),
        (32, -floats, 2, "more than 16 bits"),
    ):
        kind = {2: "i", 3: "f"}[sample_format]
        data = values.astype(f"<{kind}{bits // 8}").tobytes()
        content = tiff([data], values.shape, [bits], 1, (339, 3, [sample_format]))
        yield Case(f"tiff of {kind}{bits} {reason}", content, reason)
    lab = Image.new("LAB", (4, 4))
    yield Case("tiff of CIE Lab", encode(lab, "TIFF"), "convert them to RGB")
    many = tiff([b"\0" * 7 * 16], (4, 4), [8] * 7, RGB, (338, 3, [0] * 4))
    yield Case("tiff of seven samples", many, "7 samples")
    rgb = random_samples(8, 6, 10, 3).astype(np.uint8)
    yield Case("tiff cut", tiff([rgb.tobytes()], (60, 10), [8] * 3, RGB), "truncated")
    yield Case("tiff of nothing", b"II*\0\xff\0\0\0", "truncated")
    yield Case("tiff without strips", tiff([], (6, 10), [8] * 3, RGB), "kind of TIFF")
