"""What to say of bytes, arrays and paths that are no image: what they are, and the remedy."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNKNOWN = "not an image of a known format"
_CONVERT = "save it as PNG or JPEG"
_KINDS = {
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1": "a Parquet file: dsd-trt score --pairs takes its images",
    b"\x1f\x8b": "compressed: gunzip unpacks it",
    b"%PDF": f"a PDF: {_CONVERT}",
    b"\x93NUMPY": f"an array of numpy: {_CONVERT}, or give the array itself in Python",
    b"8BPS": f"a Photoshop file: {_CONVERT}",
}
_TEXTS = {
    b"<!doctype": "a web page: download the image itself",
    b"<html": "a web page: download the image itself",
    b"<svg": f"an SVG drawing: {_CONVERT}",
    b"<?xml": f"XML, perhaps an SVG drawing: {_CONVERT}",
    b"{": "JSON, perhaps the error of a download",
}
_HEIF = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")


def unknown_format(start: bytes) -> str:
    """Message about a file of no known format.

    Args:
        start: first bytes of the file, 12 or more.
    """
    kind = next((it for magic, it in _KINDS.items() if start.startswith(magic)), "")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kind = kind or next((it for magic, it in _TEXTS.items() if text.startswith(magic)), "")
    if start[4:12] in _HEIF:
        kind = f"HEIF, which is not read: {_CONVERT}"
    return f"{_UNKNOWN}; it is {kind}" if kind else _UNKNOWN


def unreadable(path: str | os.PathLike[str], error: OSError) -> str:
    """Message about a path that cannot be read as a file."""
    name, reason = os.fspath(path), error.strerror or str(error)
    if not name:
        return "the path is empty"
    if isinstance(error, FileNotFoundError) and "://" in name:
        return f"{reason}: it is a URL, and images are files: download it first"
    if isinstance(error, IsADirectoryError):
        return f"{reason}: give its images as a list"
    return reason


def as_array(image: object) -> str:
    """End of a message about an object that is no image: how it becomes one; "" if unknown."""
    return ", such as x.permute(1, 2, 0).cpu().numpy()" if hasattr(image, "permute") else ""


def unknown_array(pixels: NDArray[Any]) -> str:
    """Message about an array that is no image."""
    message = (
        f"an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), got {pixels.dtype} {pixels.shape}"
    )
    steps = []
    if pixels.ndim == 4:
        steps.append("x[0]" if len(pixels) == 1 else "list(x), a list of images")
    elif pixels.ndim == 3 and pixels.shape[2] == 1:
        steps.append("x[:, :, 0]")
    elif pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (3, 4):
        steps.append("x.transpose(1, 2, 0)" if pixels.shape[0] > 1 else "x[0]")
    if np.issubdtype(pixels.dtype, np.floating):
        steps.append("(255 * x).round().astype(numpy.uint8), if its values are from 0 to 1")
    elif pixels.dtype != np.uint8 and np.issubdtype(pixels.dtype, np.integer):
        steps.append("x.astype(numpy.uint8), if its values are from 0 to 255")
    return f"{message}. Convert it: {', then '.join(steps)}" if steps else message
