"""Images in any accepted form to the bytes of a graph's input."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from dsd_trt.bundle.manifest import Resize
from dsd_trt.errors import ImageError
from dsd_trt.files.lfs import POINTER, is_pointer
from dsd_trt.files.regular import read_regular
from dsd_trt.image import avif, bmp, gif, jpeg, png, tiff
from dsd_trt.image.orientation import orientation, upright, without_prefix
from dsd_trt.image.picture import Picture, check_size, open_as, too_large
from dsd_trt.image.rgb import to_rgb
from dsd_trt.image.room import ROOM
from dsd_trt.image.stored import StoredImage
from dsd_trt.image.unknown import as_array, unknown_array, unknown_format, unreadable
from dsd_trt.limits import IMAGE_BYTES, IMAGE_PIXELS

ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | StoredImage
)

_CHANNELS = ((), (3,), (4,))  # grey, RGB, RGBA

# Decoders that neither run other programs (EPS starts Ghostscript) nor open other files, with the
# Pillow module of each: importing all modules takes longer than decoding most images.
_FORMATS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "AVIF": "AvifImagePlugin",
}

_READERS: dict[str, Callable[[BinaryIO, int], Picture]] = {
    "JPEG": jpeg.read,
    "PNG": png.read,
    "TIFF": tiff.read,
    "AVIF": avif.read,
    "GIF": gif.read,
    "BMP": bmp.read,
}

_CLIP_RESOLUTION = 224

# Pillow's images are not made for threads, and one may be given several times.
_one_at_a_time = threading.RLock()  # a signal handler may interrupt


def _renew_lock() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):  # a child has none of the threads that may hold it
    os.register_at_fork(after_in_child=_renew_lock)


def preprocess(
    source: ImageSource,
    resolution: int,
    resize: Resize = "bicubic-stretch",
    max_pixels: int | None = None,
) -> NDArray[np.uint8]:
    """Decode an image and stretch it to the model's square.

    Args:
        source: path, encoded bytes, PIL image, uint8 array (H, W), (H, W, 3) or (H, W, 4), or an
            image stored in a tar file or a table.
        resolution: side of the square in pixels.
        resize: name of the resizing method, see `Resize`.
        max_pixels: largest accepted width times height. None is the limit DSD_TRT_MAX_IMAGE_PIXELS.

    Returns:
        RGB pixels, uint8 (resolution, resolution, 3).

    Raises:
        ImageError: the image cannot be decoded; the message is the reason.
    """
    with ROOM.held():
        image = load_image(source, max_pixels)
        if resize == "bicubic-stretch-through-224":
            image = image.resize((_CLIP_RESOLUTION, _CLIP_RESOLUTION), Image.Resampling.BICUBIC)
        # A copy, since PyTorch warns of arrays that cannot be written.
        return np.array(image.resize((resolution, resolution), Image.Resampling.BICUBIC))


def load_image(source: ImageSource, max_pixels: int | None = None) -> Image.Image:
    """Decode an image to upright RGB.

    Transparent pixels are composited on white, 16-bit samples are scaled to 8 bits, and only the
    first frame of an animation is decoded. Colour profiles are not applied. Orientation is the only
    metadata read, so damaged metadata never costs an image.

    Args:
        source: image in any form accepted by `preprocess`. In PIL mode `I`, white is 65535.
        max_pixels: largest accepted width times height, as for `preprocess`.

    Raises:
        ImageError: the image cannot be decoded; the message is the reason.
    """
    if max_pixels is None:
        max_pixels = IMAGE_PIXELS.value()
    try:
        with ROOM.held():
            picture = _read(source, max_pixels)
            return upright(to_rgb(picture.image), picture.orientation)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        lowered = 2 * (Image.MAX_IMAGE_PIXELS or max_pixels) < max_pixels
        reason = ImageError("more pixels than Pillow's Image.MAX_IMAGE_PIXELS allows")
        raise reason if lowered else too_large(max_pixels) from None
    except OSError as error:
        raise ImageError(error.strerror or f"cannot be decoded: {error}") from None
    except Exception as error:
        # Damaged files make Pillow's decoders raise almost anything (SyntaxError, struct.error,
        # zlib.error, ...), and one bad file must not cost the others.
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def image_identity(image: object) -> object:
    """Identity of an image: its path, its place, or the object itself; equal for the same image."""
    if isinstance(image, StoredImage):
        return image
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)


def held_bytes(image: object) -> int:
    """Number of bytes that an image holds in memory: 0 for one that is in a file."""
    if isinstance(image, bytes):
        return len(image)
    if isinstance(image, Image.Image):
        return 4 * image.width * image.height  # at most: a grey pixel has one byte
    return image.nbytes if isinstance(image, np.ndarray) else 0


def image_suffixes() -> frozenset[str]:
    """File name suffixes that `load_image` can decode, lower case with their dot."""
    formats = _formats()
    return frozenset(suffix for suffix, kind in Image.EXTENSION.items() if kind in formats)


@functools.cache
def _formats() -> tuple[str, ...]:
    for module in _FORMATS.values():
        with contextlib.suppress(ImportError):  # Pillow supports AVIF since 11.3
            importlib.import_module(f"PIL.{module}")  # registers the decoder, if Pillow has it
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _read(source: ImageSource, max_pixels: int) -> Picture:
    if isinstance(source, np.ndarray):
        image = _from_array(source)
        check_size(image.size, max_pixels)
        return Picture(image, 1)
    if isinstance(source, Image.Image):
        with _one_at_a_time:
            return _from_pil(source, max_pixels)
    if isinstance(source, StoredImage):
        source = source.content()
    if isinstance(source, bytes):
        if fault := IMAGE_BYTES.fault(len(source)):
            raise ImageError(fault)
        return _decode(BytesIO(source), max_pixels)
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(
            f"{type(source).__name__} is no image: give a path, the bytes of a file, a PIL "
            f"image or a uint8 array{as_array(source)}"
        )
    try:
        content = read_regular(source, IMAGE_BYTES)
    except OSError as error:
        raise ImageError(unreadable(source, error)) from None
    return _decode(BytesIO(content), max_pixels)


def _decode(stream: BinaryIO, max_pixels: int) -> Picture:
    start = stream.read(64)
    if not (prefix := start[:16]):
        raise ImageError("the file is empty")
    for form in _formats():
        accepts = Image.OPEN[form][1]
        accepted = accepts is None or accepts(prefix)
        if isinstance(accepted, str):
            raise ImageError(accepted)
        if accepted:
            stream.seek(0)
            return _READERS.get(form, functools.partial(_read_plain, form))(stream, max_pixels)
    if is_pointer(start):
        raise ImageError(POINTER)
    raise ImageError(unknown_format(start))


def _read_plain(form: str, stream: BinaryIO, max_pixels: int) -> Picture:
    """Decode formats for which Pillow follows the specification."""
    image = open_as(form, stream, max_pixels)
    return Picture(image, _orientation(image))


def _loaded(picture: Picture) -> Picture:
    picture.image.load()  # load before the file is closed
    return picture


def _orientation(image: Image.Image) -> int:
    """Orientation from metadata that Pillow found; Pillow itself would raise on damage."""
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    return orientation(
        without_prefix(exif) if isinstance(exif, bytes) else b"",
        xmp if isinstance(xmp, bytes) else b"",
    )


def _from_pil(image: Image.Image, max_pixels: int) -> Picture:
    check_size(image.size, max_pixels)
    stream = getattr(image, "fp", None)
    if (
        isinstance(image, ImageFile.ImageFile)
        and image.format in _formats()
        and (image.tile and stream is not None and stream.seekable())
        and not (image.tell() or image.decoderconfig)
    ):
        # Opened but not loaded: the same as its file.
        place = stream.tell()
        try:
            stream.seek(0)
            return _loaded(_decode(stream, max_pixels))
        finally:
            stream.seek(place)
    image.load()
    return Picture(image, _orientation(image))


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in _CHANNELS:
        raise ImageError(unknown_array(pixels))
    if 0 in pixels.shape:
        raise ImageError("it has no pixels")
    return Image.fromarray(pixels)
