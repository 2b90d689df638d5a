"""Images, texts, pairs and noise levels that a call is given, checked before any work."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsd_trt.arguments import described, shown
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.errors import InputError
from dsd_trt.files.rows import text_fault
from dsd_trt.image.preprocess import image_identity
from dsd_trt.index.files import is_index
from dsd_trt.index.index import Index
from dsd_trt.jobs import Scorable
from dsd_trt.limits import IMAGES, PAIRS, TEXTS, Limit


def open_images(
    images: str | os.PathLike[str] | Iterable[Scorable], texts: int = 1
) -> Iterable[Scorable]:
    """Iterate over images; the folder of an index yields the images of that index.

    Args:
        images: images to score, as for `Scorer.score`.
        texts: number of texts that each image is scored against.

    Raises:
        InputError: `images` is not iterable, or exceeds a limit.
    """
    if isinstance(images, bytes):
        raise InputError("images must be a list: an encoded image alone is [image]")
    if isinstance(images, Image.Image) or (
        isinstance(images, np.ndarray) and images.ndim in (2, 3)
    ):
        raise InputError("images must be a list: a picture alone is [image]")
    if isinstance(images, (str, os.PathLike)):
        if not is_index(images):
            raise InputError(f"{images} is no index; give images as a list: [{str(images)!r}]")
        images = Index.open(images)
    if not _is_iterable(images):
        raise InputError(f"images must be a list, got {type(images).__name__}")
    if isinstance(images, Mapping) or hasattr(images, "iterrows"):  # would yield its keys
        raise InputError(
            f"images must be a list, got {type(images).__name__}: give one of its columns, such as "
            "table['image']"
        )
    if isinstance(images, Sequence):
        _require_within_limits(len(images), texts)
        return images
    return _counted(images, texts)


def _counted(images: Iterable[Scorable], texts: int) -> Iterator[Scorable]:
    for number, image in enumerate(images, start=1):
        _require_within_limits(number, texts)
        yield image


def _require_within_limits(images: int, texts: int = 1) -> None:
    """Refuse a call whose images, or pairs of images and texts, exceed a limit.

    Raises:
        InputError: a limit is exceeded; the message names it.
    """
    _require(IMAGES, images)
    _require(PAIRS, images * texts)


def _require(limit: Limit, count: int) -> None:
    if fault := limit.fault(count):
        raise InputError(f"a call has {fault}. Make several calls, or set the limit higher")


def former_top_k(top_k: int | None, best: int | None) -> int | None:
    """The number of best results, given as `top_k` or under its former name.

    Raises:
        InputError: both names are given, with different values.
    """
    if top_k is not None and best is not None and top_k != best:
        raise InputError("best is the former name of top_k: give top_k alone")
    return best if top_k is None else top_k


def checked_texts(texts: Sequence[str] | NDArray[np.str_] | NDArray[np.object_]) -> list[str]:
    """Texts as a list of plain strings.

    Args:
        texts: strings, as a sequence or a 1-D array.

    Raises:
        InputError: it is neither, is empty, exceeds the limit, or has an element that is not a
            text; the message names the position.
    """
    if not _is_list(texts):
        raise InputError(
            f"texts must be a list of strings or a 1-D array of them, got {described(texts)}"
        )
    if not len(texts):
        raise InputError("texts is empty: there must be a text")
    _require(TEXTS, len(texts))
    return [checked_text(text, f"texts[{place}]") for place, text in enumerate(texts)]


def checked_text(text: object, place: str) -> str:
    """One text as a plain string.

    Args:
        text: the value the caller passed.
        place: name of the argument, for messages.

    Raises:
        InputError: it is not a string, is empty, or contains characters that no text may have.
    """
    if not isinstance(text, str):
        hint = ": decode it first" if isinstance(text, bytes) else ""
        raise InputError(f"{place} must be a string, got {described(text)}{hint}")
    if fault := text_fault(text):
        raise InputError(f"{place} has {fault}: {reprlib.repr(text)}")
    if not text.strip():
        raise InputError(f"{place} is empty: a text needs a word; leave it out")
    return str.__str__(text)  # numpy strings and enumerations become plain strings


def level_indices(manifest: Manifest, levels: object) -> NDArray[np.int32]:
    """Indices of noise levels among a bundle's, in the bundle's order, each once, int32 (levels,).

    Args:
        manifest: manifest of the bundle.
        levels: noise levels, numbers; None is all of the bundle's.

    Raises:
        InputError: the bundle lacks a level, there is none, or they are no numbers.
    """
    known = manifest.method.noise_levels.fractions
    wanted = known if levels is None else checked_levels(levels)
    for s in wanted:
        if s not in known:
            raise InputError(
                f"the bundle has no noise level {s}; it has {', '.join(map(str, known))}"
            )
    if len(wanted) == 0:
        raise InputError("no noise level to score at")
    return np.array([i for i, s in enumerate(known) if s in wanted], np.int32)


def checked_error(error: Any) -> float:
    """The accepted error of a pruned search, validated.

    Raises:
        InputError: it is not a probability above 0 and at most 0.5.
    """
    if _is_number(error) and 0 < error <= 0.5:
        return float(error)
    raise InputError(f"error must be a probability above 0 and at most 0.5, got {shown(error)}")


def checked_levels(levels: object) -> tuple[float, ...]:
    """Noise levels as numbers; whether the bundle has them is checked later.

    Args:
        levels: the value the caller passed, an iterable of numbers.

    Raises:
        InputError: it is not iterable, is a string, or has an element that is not a number.
    """
    is_string = isinstance(levels, (str, bytes, bytearray))
    if not is_string and isinstance(levels, Iterable) and getattr(levels, "ndim", 1) == 1:
        given: list[Any] = list(levels)
        if all(map(_is_number, given)):
            # The decimal number is meant: the float32 nearest to 0.2 is another double.
            return tuple(float(str(it)) if isinstance(it, np.floating) else it for it in given)
        levels = given
    raise InputError(f"levels must be a list such as [0.2, 0.4], got {shown(levels)}")


def checked_pairs(pairs: Iterable[Any]) -> list[tuple[Scorable, str]]:
    """Pairs of an image and a text, the text as a plain string.

    Raises:
        InputError: an element is not a pair, or its text is not a text; the message names the
            position. Or a limit is exceeded.
    """
    if isinstance(pairs, (str, bytes)) or not _is_iterable(pairs):
        raise InputError(f"pairs must be (image, text) tuples, got {described(pairs)}")
    checked: list[tuple[Scorable, str]] = []
    for place, pair in enumerate(pairs):
        _require(PAIRS, place + 1)
        if not _is_list(pair) or len(pair) != 2:
            raise InputError(f"pairs[{place}] must be (image, text), got {described(pair)}")
        image, text = pair
        checked.append((image, checked_text(text, f"the text of pairs[{place}]")))
    _require(TEXTS, len({text for _, text in checked}))
    _require(IMAGES, len({image_identity(image) for image, _ in checked}))
    return checked


def _is_iterable(value: object) -> bool:
    """Whether a value can be iterated over; a 0-D array cannot."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def _is_number(value: object) -> bool:
    """Whether a value is a real number, of Python or numpy; a boolean is not."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    """Whether a value is ordered and has a length: a list, a tuple, an array, a table's column."""
    if isinstance(value, (str, bytes, bytearray, Mapping)) or getattr(value, "ndim", 1) != 1:
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")
