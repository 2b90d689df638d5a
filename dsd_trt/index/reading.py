"""Images of files and tar files, read and decoded to be indexed."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.manifest import Preprocessing
from dsd_trt.errors import ImageError
from dsd_trt.files.regular import read_regular
from dsd_trt.image.preprocess import preprocess
from dsd_trt.index.webdataset import tar_images
from dsd_trt.limits import IMAGE_BYTES
from dsd_trt.spans import span


@dataclass(frozen=True)
class Found:
    """An image of a file, not yet read or decoded.

    Attributes:
        file: path of the image file or tar file.
        path: name of the file in the index.
        name: name of the image.
        size: size of the file in bytes; None if unknown.
        mtime: modification time of the file in nanoseconds; None if unknown.
        content: encoded image, or the reason why there is none; None for a file that is still to
            be read.
        known: names of the images of an unchanged file, which is not read again; None for any
            other.
        unread: whether it stands for a tar file that could not be read at all.
    """

    file: Path
    path: str
    name: str
    size: int | None
    mtime: int | None
    content: bytes | ImageError | None = None
    known: tuple[str, ...] | None = None
    unread: bool = False

    def held_bytes(self) -> int:
        """Number of bytes of the encoded image that are held in memory."""
        return len(self.content) if isinstance(self.content, bytes) else 0


@dataclass(frozen=True)
class Read:
    """An image that was read.

    Attributes:
        sha256: hash of the encoded image; None if it could not be read.
        pixels: decoded image; None if an earlier one has the same bytes, or with `error`.
        error: reason why it cannot be decoded.
    """

    sha256: str | None = None
    pixels: NDArray[np.uint8] | None = None
    error: str | None = None


def read(found: Found, to: Preprocessing, known: Container[str]) -> Read:
    """Read, hash and decode an image; any thread may call it.

    Args:
        found: image as it was found.
        to: preprocessing of the image encoder.
        known: hashes of images that need not be decoded.
    """
    if found.known is not None:
        return Read()
    with span("decode", image=found.name):
        return _read(found, to, known)


def _read(found: Found, to: Preprocessing, known: Container[str]) -> Read:
    content = found.content
    try:
        if content is None:
            content = read_regular(found.file, IMAGE_BYTES)
    except OSError as error:
        return Read(error=error.strerror or str(error))
    if isinstance(content, ImageError):
        return Read(error=str(content))
    digest = hashlib.sha256(content).hexdigest()
    if digest in known:
        return Read(digest)
    try:
        return Read(digest, preprocess(content, to.resolution, to.resize))
    except ImageError as error:
        return Read(digest, error=str(error))


def members(file: Path) -> Iterator[tuple[str, bytes | ImageError]]:
    """Names with contents of a tar's images; an unreadable tar is listed under its own name."""
    found = tar_images(file)
    try:
        while True:
            with span("waiting for a picture", "read a tar file"):
                one = next(found, None)
            if one is None:
                return
            name, content = one
            yield f"{file}/{name}" if name else str(file), content
    except OSError as error:
        yield str(file), ImageError(error.strerror or str(error))


def status(file: Path) -> tuple[int | None, int | None]:
    """Size and modification time; empty values if unknown, as reading will report the error."""
    try:
        status = file.stat()
    except OSError:
        return None, None
    return status.st_size, status.st_mtime_ns
