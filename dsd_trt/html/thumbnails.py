"""Small pictures of images, within a number of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from PIL import Image

from dsd_trt.errors import ImageError
from dsd_trt.image.decoding import decoded_in_order, images_ahead
from dsd_trt.image.preprocess import ImageSource, load_image

PAGE_BYTES = 40 * 10**6
"""Length of a page that thumbnails may fill."""

_SIDES = ((40, 320), (200, 224), (1000, 160), (2500, 128), (10_000, 96))  # images, pixels
_SMALLEST = 48  # pixels
_MOST_BYTES = 40_000  # of one thumbnail, however few there are
_LEAST_BYTES = 600  # what a JPEG's tables alone take
_QUALITIES = (82, 70, 55, 35)


@dataclass(frozen=True)
class ThumbnailSize:
    """What a thumbnail may take.

    Attributes:
        side: length of its longer side in pixels.
        most_bytes: length of its JPEG file.
    """

    side: int
    most_bytes: int

    @classmethod
    def fitting(cls, count: int, room: int) -> ThumbnailSize | None:
        """The size at which all thumbnails fit in base64.

        Args:
            count: number of thumbnails to fit in.
            room: number of bytes for all of them.

        Returns:
            The size, or None if there is room for none.
        """
        each = min(_MOST_BYTES, 3 * room // (4 * max(1, count)) - 8)  # 4 letters have 3 bytes
        if each < _LEAST_BYTES:
            return None
        return cls(next((side for most, side in _SIDES if count <= most), _SMALLEST), each)


def thumbnail(source: ImageSource, size: ThumbnailSize) -> str | None:
    """A small picture of an image as a JPEG in base64.

    Args:
        source: image in any form, as for `load_image`.
        size: what it may take; a picture that has more bytes is made coarser, then smaller.

    Returns:
        The JPEG; None if the image cannot be read.
    """
    try:
        picture = load_image(source)
    except ImageError:
        return None
    side = size.side
    while True:
        picture.thumbnail((side, side), reducing_gap=2.0)
        for quality in _QUALITIES:
            encoded = _jpeg(picture, quality)
            if len(encoded) <= size.most_bytes:
                return base64.b64encode(encoded).decode("ascii")
        if side <= _SMALLEST // 4:
            return None
        side //= 2


def thumbnails(sources: Iterable[ImageSource | None], size: ThumbnailSize) -> Iterator[str | None]:
    """Small pictures of images in their order, decoded by several threads.

    Args:
        sources: images; None for one without pixels, which has no picture.
        size: what each may take.
    """
    made = decoded_in_order(
        lambda source: None if source is None else thumbnail(source, size),
        sources,
        images_ahead(1),
    )
    with closing(made):
        for _, picture in made:
            yield picture


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()
