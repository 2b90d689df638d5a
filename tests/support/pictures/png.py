"""PNG files, written by hand."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from pictures.case import (
    Case,
    Samples,
    as_rgb,
    on_white,
    random_samples,
    scaled,
)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def packed(samples: Samples, depth: int) -> list[bytes]:
    """Pack rows of samples (height, width, channels), the first one in a byte's high bits."""
    rows = samples.reshape(len(samples), -1)
    bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return [np.packbits(row.ravel()).tobytes() for row in bits]


ADAM7 = (  # first column, first row, column step, row step of each pass
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)),
    (0, 1, 1, 2),
)


def png(
    samples: Samples,
    depth: int,
    color: int,
    *before: tuple[bytes, bytes],
    after: Sequence[tuple[bytes, bytes]] = (),
    interlaced: bool = False,
    first: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of samples (height, width) or (height, width, channels) with further chunks."""
    samples = samples.reshape(*samples.shape[:2], -1)
    passes = [samples]
    if interlaced:
        passes = [samples[y::down, x::across] for x, y, across, down in ADAM7]
    rows = [row for one in passes if one.size for row in packed(one, depth)]
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    half = len(data) // 2
    chunks = (*first, (b"IHDR", header), *before, (b"IDAT", data[:half]), (b"IDAT", data[half:]))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(*chunk) for chunk in (*chunks, *after, (b"IEND", b""))
    )


def shorts(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def png_kinds() -> Iterator[Case]:
    for depth in (1, 2, 4, 8, 16):
        grey = random_samples(depth, 9, 11)
        white = 2**depth - 1
        seen = as_rgb(scaled(grey, white))
        for interlaced in (False, True):
            yield Case(
                f"png grey {depth} bits{' interlaced' * interlaced}",
                png(grey, depth, 0, interlaced=interlaced),
                seen,
            )
        key = int(grey[4, 4])
        keyed = np.where((grey == key)[..., None], 255, seen).astype(np.uint8)
        yield Case(f"png grey {depth} bits key", png(grey, depth, 0, (b"tRNS", shorts(key))), keyed)
        if depth < 16:
            high = shorts(key | 1 << depth)
            yield Case(
                f"png grey {depth} key's low bits", png(grey, depth, 0, (b"tRNS", high)), keyed
            )
    nearly = np.array([[0x1234, 0x1235, 0x1334, 0x0034]])
    yield Case(
        "png grey 16 bits key by all bits",
        png(nearly, 16, 0, (b"tRNS", shorts(0x1234))),
        as_rgb(np.where(nearly == 0x1234, 255, scaled(nearly, 65535))),
    )
    for depth in (8, 16):
        white = 2**depth - 1
        rgb = random_samples(depth, 9, 11, 3)
        rgba, grey_alpha = random_samples(depth, 9, 11, 4), random_samples(depth, 9, 11, 2)
        seen = scaled(rgb, white)
        key = rgb[2, 3]
        rgb[2, 4] = key + np.where(key < white, 1, -1)  # another colour, perhaps of the same bytes
        seen = scaled(rgb, white)
        keyed = np.where((rgb == key).all(2, keepdims=True), 255, seen).astype(np.uint8)
        parts = scaled(rgba, white), scaled(grey_alpha, white)
        for interlaced in (False, True):
            end = f"{depth} bits{' interlaced' * interlaced}"
            yield Case(f"png rgb {end}", png(rgb, depth, 2, interlaced=interlaced), seen)
            yield Case(
                f"png rgb {end} key",
                png(rgb, depth, 2, (b"tRNS", shorts(*key)), interlaced=interlaced),
                keyed,
            )
            yield Case(
                f"png rgba {end}",
                png(rgba, depth, 6, interlaced=interlaced),
                on_white(parts[0][..., :3], parts[0][..., 3]),
            )
            yield Case(
                f"png grey alpha {end}",
                png(grey_alpha, depth, 4, interlaced=interlaced),
                on_white(as_rgb(parts[1][..., 0]), parts[1][..., 1]),
            )
    yield Case(
        "png rgb with a palette that is advice",
        png(rgb, 16, 2, (b"PLTE", bytes(range(30)))),
        seen,
    )
    for depth in (1, 2, 4, 8):
        indices = random_samples(depth, 9, 11)
        palette = random_samples(8, 2**depth, 3).astype(np.uint8)
        colors = (b"PLTE", palette.tobytes())
        for interlaced in (False, True):
            yield Case(
                f"png palette {depth} bits{' interlaced' * interlaced}",
                png(indices, depth, 3, colors, interlaced=interlaced),
                palette[indices],
            )
        alpha = np.full(2**depth, 255, np.uint8)
        alpha[: 2**depth - 1] = random_samples(8, 2**depth - 1)
        yield Case(
            f"png palette {depth} bits alpha",
            png(indices, depth, 3, colors, (b"tRNS", alpha[:-1].tobytes())),
            on_white(palette[indices], alpha[indices]),
        )
        one = np.full(2**depth, 255, np.uint8)
        one[1] = 0
        yield Case(
            f"png palette {depth} bits one transparent",
            png(indices, depth, 3, colors, (b"tRNS", one[:2].tobytes())),
            on_white(palette[indices], one[indices]),
        )
        few = np.vstack([palette[: 2**depth - 1], [[0, 0, 0]]])  # beyond it: black
        yield Case(
            f"png palette {depth} bits too short",
            png(indices, depth, 3, (b"PLTE", few[:-1].astype(np.uint8).tobytes())),
            few[indices].astype(np.uint8),
        )
    yield Case(
        "png palette alpha too short",
        png(np.array([[0, 1, 2, 3]]), 2, 3, (b"PLTE", bytes([9, 8, 7, 6, 5, 4])), (b"tRNS", b"\0")),
        np.array([[[255, 255, 255], [6, 5, 4], [0, 0, 0], [0, 0, 0]]], np.uint8),
    )
