"""From an image, in whatever form it comes, to the bytes a graph takes."""

from __future__ import annotations

import functools
import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dsd_trt.errors import ImageError
from dsd_trt.manifest import Resize

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

MAX_PIXELS = 178_956_970
"""Images above this are refused, as by Pillow: a few kilobytes can unpack to many gigabytes."""

_CHANNELS = ((), (3,), (4,))  # grey, RGB, RGBA

# Only decoders that neither run other programs (EPS starts Ghostscript) nor open other files.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


_CLIP_RESOLUTION = 224


def preprocess(
    source: ImageSource,
    resolution: int,
    resize: Resize = "bicubic-stretch",
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decode an image and stretch it to the model's square.

    Args:
        source: path, encoded bytes, PIL image, or uint8 array (H, W), (H, W, 3) or (H, W, 4).
        resolution: side of the square in pixels.
        resize: see `Resize`.
        max_pixels: width times height above which an image is refused.

    Returns:
        RGB pixels, uint8 (resolution, resolution, 3).

    Raises:
        ImageError: it cannot be decoded; the message is the reason.
    """
    image = load_image(source, max_pixels)
    if resize == "bicubic-stretch-through-224":
        image = image.resize((_CLIP_RESOLUTION, _CLIP_RESOLUTION), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BICUBIC))


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to upright RGB.

    EXIF orientation is applied, transparency is laid on white, 16-bit greys are scaled to 8 bits,
    and of an animated file the first frame is taken.

    Args:
        source: as for `preprocess`.
        max_pixels: as for `preprocess`.

    Raises:
        ImageError: it cannot be decoded; the message is the reason.
    """
    try:
        with warnings.catch_warnings():
            # Large photographs and damaged metadata pass; `_to_rgb` draws the line on size.
            warnings.simplefilter("ignore")
            return _load(source, max_pixels)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(max_pixels) from None
    except UnidentifiedImageError:
        raise ImageError("not an image of a known format") from None
    except OSError as error:
        raise ImageError(error.strerror or f"cannot be decoded: {error}") from None
    except Exception as error:
        # Damaged files make Pillow's decoders raise almost anything (SyntaxError, struct.error,
        # zlib.error, ...), and one bad file must not cost the others.
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def image_identity(image: object) -> object:
    """Equal for two references to the same image: its path, or the very object."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)


def image_suffixes() -> frozenset[str]:
    """File name endings, lower case with their dot, that `load_image` can decode."""
    formats = _formats()
    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if kind in formats
    )


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()  # registers every decoder this build of Pillow has
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _too_large(max_pixels: int) -> ImageError:
    return ImageError(f"more than {max_pixels / 1e6:.3g} million pixels")


def _load(source: ImageSource, max_pixels: int) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), max_pixels)
    if isinstance(source, Image.Image):
        return _to_rgb(source, max_pixels)
    if isinstance(source, bytes):
        return _decode(BytesIO(source), max_pixels)
    with Path(source).open("rb") as stream:
        return _decode(stream, max_pixels)


def _decode(stream: BinaryIO, max_pixels: int) -> Image.Image:
    if not stream.read(1):
        raise ImageError("the file is empty")
    stream.seek(0)
    with Image.open(stream, formats=_formats()) as image:
        return _to_rgb(image, max_pixels)


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in _CHANNELS:
        raise ImageError(
            "an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), "
            f"got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(pixels)


def _to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """Upright RGB without transparency, whatever the mode."""
    if 0 in image.size:
        raise ImageError("it has no pixels")
    if image.width * image.height > max_pixels:
        raise _too_large(max_pixels)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _scale_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise ImageError("floating-point pixels have no defined white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to 8: Pillow's own conversion would clip everything above 255 to white."""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError("grey values of more than 16 bits")
    return Image.fromarray(np.round(grey / 257).astype(np.uint8))  # 65535 = 255 * 257
