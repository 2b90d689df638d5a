"""The work of a scorer: images with their texts, decoded in advance and counted."""

from __future__ import annotations

import itertools
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsd_trt.arguments import checked_progress, described, shown
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.errors import ImageError, InputError
from dsd_trt.files.rows import text_fault
from dsd_trt.image.decoding import decoding_pool
from dsd_trt.image.preprocess import ImageSource, image_identity, preprocess
from dsd_trt.image.stored import StoredImage
from dsd_trt.index.files import is_index
from dsd_trt.index.index import Index, IndexedImage
from dsd_trt.limits import IMAGES, PAIRS, TEXTS, Limit
from dsd_trt.results import Progress

Scorable: TypeAlias = ImageSource | IndexedImage
Decoded: TypeAlias = NDArray[Any] | ImageError
"""Pixels of an image, its latent if it comes from an index, or the decoding error."""


@dataclass(frozen=True)
class Job:
    """One image and the indices of its texts among the encoded texts."""

    image: Scorable
    texts: NDArray[np.intp]


@dataclass(frozen=True)
class TextScores:
    """Scores of some texts: of one job's image, or of all images of a batch, one after another.

    Attributes:
        scores: f of each text, float32 (texts,); NaN where there is no score.
        lost: True where the engine computed no finite f, bool (texts,).
    """

    scores: NDArray[np.float32]
    lost: NDArray[np.bool_]

    @classmethod
    def of(cls, scores: NDArray[np.float32]) -> TextScores:
        """A row in which every NaN is a score the engine could not compute."""
        return cls(scores, np.isnan(scores))

    def spread(self, known: NDArray[np.bool_]) -> TextScores:
        """Scores of all texts; those that are not `known` get NaN."""
        if known.all():
            return self
        scores, lost = np.full(len(known), np.nan, np.float32), np.zeros(len(known), np.bool_)
        scores[known], lost[known] = self.scores, self.lost
        return TextScores(scores, lost)


@dataclass(frozen=True)
class Scored:
    """The outcome for one image and its texts, or for one part of a batch.

    Attributes:
        result: the scores, or the reason why the image has no latent.
        passes: number of scores at single noise levels, each of one image and one text: passes in
            pair mode.
    """

    result: TextScores | ImageError
    passes: int

    def spread(self, known: NDArray[np.bool_]) -> Scored:
        """Scores of all texts; those that are not `known` get NaN."""
        if isinstance(self.result, ImageError):
            return self
        return Scored(self.result.spread(known), self.passes)


def decoded_ahead(
    jobs: Iterable[Job], manifest: Manifest, size: int
) -> Iterator[list[tuple[Job, Decoded]]]:
    """Decode the images of jobs in several threads, while earlier ones are scored.

    Args:
        jobs: images with their texts, consumed in the caller's thread, at most one chunk in
            advance.
        manifest: manifest of the bundle to decode for.
        size: number of jobs per chunk.

    Raises:
        InputError: an image comes from an index of another image encoder.
    """

    def decode(job: Job) -> Decoded:
        return decode_image(job.image, manifest)

    jobs = iter(jobs)
    pool = decoding_pool()
    try:
        chunk = list(itertools.islice(jobs, size))
        decoded = pool.map(decode, chunk)
        while chunk:
            following = list(itertools.islice(jobs, size))
            waiting = pool.map(decode, following)
            yield list(zip(chunk, decoded, strict=True))
            chunk, decoded = following, waiting
    finally:  # also if the caller stops early: no thread may keep decoding
        pool.shutdown(cancel_futures=True)


def decode_image(image: Scorable, manifest: Manifest) -> Decoded:
    """Decode an image for a bundle.

    Raises:
        InputError: the image comes from an index of another image encoder.
    """
    to = manifest.preprocessing
    try:
        if isinstance(image, IndexedImage):
            image.index.require(manifest)
            return image.latent()
        return preprocess(image, to.resolution, to.resize)
    except ImageError as error:
        return error


class Tally:
    """Counts scores at single levels, and reports whole pairs to a progress callback.

    Raises:
        InputError: `progress` is not callable.
    """

    def __init__(self, progress: Progress | None, total: int | None, levels: int) -> None:
        self._progress = checked_progress(progress)
        self._total, self._levels = total, levels
        self.finished = 0  # passes computed or skipped
        self.passes = 0

    def add(self, passes: int) -> None:
        """Count passes that were computed."""
        self.passes += passes
        self.skip(passes)

    def skip(self, passes: int) -> None:
        """Count passes that are not needed."""
        self.finished += passes
        if self._progress:
            self._progress(self.finished // self._levels, self._total)


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
        require_within_limits(len(images), texts)
        return images
    return _counted(images, texts)


def _counted(images: Iterable[Scorable], texts: int) -> Iterator[Scorable]:
    for number, image in enumerate(images, start=1):
        require_within_limits(number, texts)
        yield image


def require_within_limits(images: int, texts: int = 1) -> None:
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


def unique_texts(texts: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    """Texts without duplicates, and the index of each original among them."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(place), np.array([place[text] for text in texts], np.intp)


def name_of(image: Scorable, position: int) -> str:
    """Name of an image in results."""
    if isinstance(image, (IndexedImage, StoredImage)):
        return image.name
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {position}"
