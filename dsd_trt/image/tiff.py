"""TIFF's first page by its specification, without tags that do not affect pixels.

Pillow reads every tag of a file, fails or warns on damaged ones, and misreads some layouts. It
therefore gets a rewritten file: the page's data, and a directory of the needed tags (see
`tiff_page`).
"""

from __future__ import annotations

import sys
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsd_trt.errors import ImageError
from dsd_trt.image.orientation import declared
from dsd_trt.image.picture import Picture, check_size, open_as, samples, to_8_bits
from dsd_trt.image.tiff_page import Page, Tag, read_page, rewrite

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _IS_RGB, _IS_CMYK, _IS_YCBCR, _IS_LAB = 0, 1, 2, 5, 6, 8
_SIGNED, _FLOATING, _UNDEFINED = 2, 3, 4
_PREMULTIPLIED, _ALPHA = 1, 2  # meaning of an extra sample; 0 is unspecified
_SEPARATE = 2  # separate planes instead of interleaved pixels
_UNPACKED = 1  # compression
_MOST_SAMPLES = 6


def read(stream: BinaryIO, max_pixels: int) -> Picture:
    """Decode the first page."""
    page = read_page(stream)
    check_size(page.size, max_pixels)
    turn = declared(page.orientation, page.xmp)
    return Picture(_Decoder(stream, page, max_pixels).decode(), turn)


class _Decoder:
    """One page, decoded as its tags describe."""

    def __init__(self, stream: BinaryIO, page: Page, max_pixels: int) -> None:
        self._stream, self._max_pixels = stream, max_pixels
        self._channels = page.get(Tag.SAMPLES, 1)
        bits = page.tags.get(Tag.BITS, (1,))
        self._bits = bits[0] if len(set(bits[: self._channels])) == 1 else 0
        self._kind = page.get(Tag.PHOTOMETRIC, _WHITE_IS_ZERO)
        self._format = page.get(Tag.FORMAT, 1)
        if self._format == _UNDEFINED:  # the specification: same as an absent tag
            self._format, page = 1, page.with_tag(Tag.FORMAT)
        self._extra = page.tags.get(Tag.EXTRA, ())
        self._page = page
        self._check()

    def _check(self) -> None:
        if self._channels > _MOST_SAMPLES:
            raise ImageError(f"{self._channels} samples a pixel")
        if self._format == _FLOATING:
            raise ImageError("floating-point pixels have no defined white")
        if self._format == _SIGNED and self._bits != 32:
            raise ImageError("signed pixels have no defined white")
        if self._kind == _IS_LAB:
            raise ImageError("CIE L*a*b* colours: convert them to RGB")
        page = self._page
        halved = page.get(Tag.SUBSAMPLING, 1) * page.second(Tag.SUBSAMPLING, 1) != 1
        if self._kind == _IS_YCBCR and page.get(Tag.COMPRESSION, 1) == _UNPACKED and halved:
            raise ImageError("subsampled colours without compression")

    def decode(self) -> Image.Image:
        """The page as an 8-bit image."""
        if self._page.get(Tag.PLANAR, 1) == _SEPARATE and self._channels > 1:
            return self._from_planes()
        if self._channels == 1 and self._kind <= _BLACK_IS_ZERO and self._bits in (12, 16, 32):
            return Image.fromarray(self._grey())
        if self._kind == _IS_RGB and len(self._extra) < 2 and self._channels in (3, 4):
            if self._bits == 16:
                return self._merge(to_8_bits(self._wide_colors(), 65535))
            if self._bits == 8 and self._extra == (_PREMULTIPLIED,):
                return self._merge(samples(self._open(self._page), "RGBA").astype(np.uint8))
        return self._open(self._page)

    def _open(self, page: Page) -> Image.Image:
        image = open_as("TIFF", rewrite(self._stream, page), self._max_pixels)
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or self._max_pixels):
            image.im = Image.new(image.mode, image.size).im  # Pillow would warn about the size
        return image

    def _grey(self, page: Page | None = None) -> NDArray[np.uint8]:
        """Greys of any depth, or one plane treated as grey."""
        page = page or self._page
        bits = self._bits
        packed = page.get(Tag.COMPRESSION, 1) != _UNPACKED
        plain = page.with_tag(Tag.PHOTOMETRIC, _BLACK_IS_ZERO)
        white = 2**bits - 1
        if bits == 12:  # Pillow supports them only in this byte order, in which they are the same
            values = samples(self._open(plain.with_order("<"))).astype(np.int64)
        elif bits == 32:
            mode = "I;32N" if packed else ""
            image = self._open(plain.with_tag(Tag.FORMAT, _SIGNED))
            values = samples(image, mode).astype(np.uint32).astype(np.int64)
            if self._format == _SIGNED:  # Pillow's layout of 16-bit greys
                white = 65535
                if values.max() > white:
                    raise ImageError("grey values of more than 16 bits")
        else:
            values = samples(self._open(plain)).astype(np.int64)
        if self._kind == _WHITE_IS_ZERO:
            values = white - values
        return to_8_bits(values, white)

    def _wide_colors(self) -> NDArray[np.int32]:
        """16-bit RGB, with alpha if present: (height, width, 3 or 4)."""
        unpacked = self._page.get(Tag.COMPRESSION, 1) == _UNPACKED
        little = self._page.order == "<" if unpacked else sys.byteorder == "little"
        mode = "RGB" if self._channels == 3 else "RGBX" if self._extra == (0,) else "RGBA"
        # Reads the low bytes, which are the high ones in the other byte order.
        high, low = (
            samples(self._open(self._page), f"{mode};16{end}") for end in ("LB" if little else "BL")
        )
        return high * 256 + low

    def _from_planes(self) -> Image.Image:
        """Decode each plane as a grey image, and merge them."""
        color = {_IS_RGB: 3, _IS_CMYK: 4, _BLACK_IS_ZERO: 1}.get(self._kind)
        if color is None or self._bits not in (8, 16) or self._channels < color:
            raise ImageError("planes of this kind cannot be decoded")
        alpha = color < self._channels and self._extra[:1] in ((_PREMULTIPLIED,), (_ALPHA,))
        whole = self._page
        planes = []
        for channel in range(color + alpha):
            page = whole
            for tag in (Tag.OFFSETS, Tag.COUNTS, Tag.TILE_OFFSETS, Tag.TILE_COUNTS):
                values = whole.tags.get(tag, ())
                pieces = len(values) // self._channels
                page = page.with_tag(tag, *values[channel * pieces : (channel + 1) * pieces])
            for tag in (Tag.PLANAR, Tag.EXTRA, Tag.FORMAT, Tag.INKS, Tag.INK_COUNT):
                page = page.with_tag(tag)
            page = page.with_tag(Tag.BITS, self._bits).with_tag(Tag.SAMPLES, 1)
            page = page.with_tag(Tag.PHOTOMETRIC, _BLACK_IS_ZERO)
            planes.append(self._grey(page) if self._bits == 16 else np.asarray(self._open(page)))
        return self._merge(np.stack(planes, axis=2))

    def _merge(self, pixels: NDArray[np.uint8]) -> Image.Image:
        """Merge planes (height, width, channels) to an image in Pillow's mode."""
        premultiplied = self._extra[:1] == (_PREMULTIPLIED,)
        if self._kind == _IS_CMYK:
            mode = "CMYK"  # additional alpha is ignored
        elif self._kind == _IS_RGB:
            mode = "RGB" if pixels.shape[2] == 3 else "RGBa" if premultiplied else "RGBA"
        else:
            mode = "L" if pixels.shape[2] == 1 else "La" if premultiplied else "LA"
        bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, 2, 0)]
        return Image.merge(mode, bands[: len(mode)])
