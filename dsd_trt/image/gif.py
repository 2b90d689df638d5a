"""GIF: the area around a first frame that is smaller than the screen."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from dsd_trt.image.picture import Picture, open_as, with_whole_palette


def read(stream: BinaryIO, max_pixels: int) -> Picture:
    """Decode the first frame, placed on its screen."""
    stream.seek(0)
    head = stream.read(13 + 768)
    image = open_as("GIF", stream, max_pixels)
    frame = image.tile[0][1] or (0, 0, *image.size)
    if frame == (0, 0, *image.size) or "transparency" in image.info:
        return Picture(
            with_whole_palette(image), 1
        )  # a frame with a transparent colour has transparent surroundings
    screen = Image.new("RGB", image.size, _background(head))
    covered = Image.new("1", image.size)
    covered.paste(1, frame)
    screen.paste(with_whole_palette(image).convert("RGB"), mask=covered)
    return Picture(screen, 1)


def _background(head: bytes) -> tuple[int, ...]:
    """Background colour of the screen; white if it has none."""
    flags, index = head[10], head[11]
    colors = head[13 : 13 + (6 << (flags & 7))] if flags & 0x80 else b""
    return tuple(colors[3 * index : 3 * index + 3]) if 3 * index + 3 <= len(colors) else (255,) * 3
