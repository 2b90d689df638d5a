"""Mutations of images behind their checksums and lengths, which readers would catch otherwise."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib

from mutations import mutate_bytes


def mutate_png(content: bytes, draw: random.Random) -> bytes:
    """Change the chunks of a PNG, with correct checksums."""
    chunks, place = [], 8
    while place + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    if not chunks:
        return mutate_bytes(content, draw)
    at = draw.randrange(len(chunks))
    kind, body = chunks[at]
    what = draw.randrange(5)
    if what == 0:
        del chunks[at]
    elif what == 1:
        chunks.insert(draw.randrange(len(chunks) + 1), chunks[at])
    elif what == 2 and kind == b"IDAT":
        pixels = b""
        with contextlib.suppress(zlib.error):  # the file may be damaged already
            pixels = zlib.decompressobj().decompress(body, 10**6)
        chunks[at] = kind, zlib.compress(mutate_bytes(pixels, draw))
    elif what == 3:
        names = (b"tRNS", b"PLTE", b"eXIf", b"iTXt", b"zTXt", b"IHDR", b"acTL", b"iCCP", b"gAMA")
        chunks.insert(at, (draw.choice(names), draw.randbytes(draw.choice((0, 1, 6, 256, 800)))))
    else:
        chunks[at] = kind, mutate_bytes(body, draw)
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def mutate_numbers(content: bytes, draw: random.Random) -> bytes:
    """Set a size, an offset or a count of a header beyond the file's content."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        width = draw.choice((1, 2, 2, 4, 4, 8))
        value = draw.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63, len(content)))
        at = draw.randrange(min(len(changed), draw.choice((32, 128, 1024))))
        order = draw.choice(("little", "big"))
        changed[at : at + width] = (value % 256**width).to_bytes(width, order)
    return bytes(changed)
