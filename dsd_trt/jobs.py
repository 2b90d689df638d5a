"""What a scorer works through: images with their texts, decoded ahead and counted."""

from __future__ import annotations

import itertools
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsd_trt.bundle.manifest import Manifest
from dsd_trt.errors import ImageError, InputError
from dsd_trt.files.rows import text_fault
from dsd_trt.image.preprocess import ImageSource, image_identity, preprocess
from dsd_trt.index.files import is_index
from dsd_trt.index.index import Index, IndexedImage
from dsd_trt.limits import IMAGES, PAIRS, TEXTS, Limit
from dsd_trt.results import Progress

Scorable: TypeAlias = ImageSource | IndexedImage
Decoded: TypeAlias = NDArray[Any] | ImageError
"""Pixels of an image, its latent where an index has that, or why it cannot be decoded."""


@dataclass(frozen=True)
class Job:
    """One image and the texts to score it against, by their place among the encoded texts."""

    image: Scorable
    texts: NDArray[np.intp]


@dataclass(frozen=True)
class Row:
    """Scores of a job's image.

    Attributes:
        scores: f of each of its texts, float32 (texts,); NaN where there is none.
        lost: texts whose f the engine could not compute, (texts,).
    """

    scores: NDArray[np.float32]
    lost: NDArray[np.bool_]

    @classmethod
    def of(cls, scores: NDArray[np.float32]) -> Row:
        """Scores that are NaN for no other reason."""
        return cls(scores, np.isnan(scores))

    def spread(self, known: NDArray[np.bool_]) -> Row:
        """Scores of all texts, of which those that are not `known` were left out."""
        if known.all():
            return self
        scores, lost = np.full(len(known), np.nan, np.float32), np.zeros(len(known), np.bool_)
        scores[known], lost[known] = self.scores, self.lost
        return Row(scores, lost)


@dataclass(frozen=True)
class Scored:
    """What became of an image and its texts, or of a part of a batch.

    Attributes:
        result: scores, or why the image has no latent.
        passes: (image, text, level) triples that were scored for it.
    """

    result: Row | ImageError
    passes: int

    def spread(self, known: NDArray[np.bool_]) -> Scored:
        """Scores of all texts, of which those that are not `known` were left out."""
        if isinstance(self.result, ImageError):
            return self
        return Scored(self.result.spread(known), self.passes)


def decoded_ahead(
    jobs: Iterable[Job], manifest: Manifest, size: int
) -> Iterator[list[tuple[Job, Decoded]]]:
    """Decode jobs' images in the background, while what was yielded before is worked on.

    Args:
        jobs: taken in the caller's thread, at most one chunk more than is yielded.
        manifest: of the bundle the images are for.
        size: of a chunk, in jobs.

    Raises:
        InputError: an image is of an index of another image encoder.
    """

    def decode(job: Job) -> Decoded:
        return decode_image(job.image, manifest)

    jobs = iter(jobs)
    pool = ThreadPoolExecutor(1, "decode")
    try:
        chunk = list(itertools.islice(jobs, size))
        decoded = pool.map(decode, chunk)
        while chunk:
            following = list(itertools.islice(jobs, size))
            waiting = pool.map(decode, following)
            yield list(zip(chunk, decoded, strict=True))
            chunk, decoded = following, waiting
    finally:  # also where the caller stops half way: nothing goes on behind its back
        pool.shutdown(cancel_futures=True)


def decode_image(image: Scorable, manifest: Manifest) -> Decoded:
    """Decode an image for a bundle.

    Raises:
        InputError: it is of an index of another image encoder.
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
    """Counts scored (image, text, level) triples and reports whole pairs.

    Raises:
        InputError: `progress` cannot be called.
    """

    def __init__(self, progress: Progress | None, total: int | None, levels: int) -> None:
        if progress is not None and not callable(progress):
            raise InputError(f"progress must be a function, got {_described(progress)}")
        self._progress, self._total, self._levels = progress, total, levels
        self.triples = 0  # done, or not needed
        self.passes = 0

    def add(self, triples: int) -> None:
        """Count triples that were scored."""
        self.passes += triples
        self.skip(triples)

    def skip(self, triples: int) -> None:
        """Count triples that are done with."""
        self.triples += triples
        if self._progress:
            self._progress(self.triples // self._levels, self._total)


def open_images(
    images: str | os.PathLike[str] | Iterable[Scorable], texts: int = 1
) -> Iterable[Scorable]:
    """Images one by one; of the folder of an index, those it holds.

    Args:
        images: as for `Scorer.score`.
        texts: that each is scored against.

    Raises:
        InputError: no list of images, or more of them than a call may have.
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
    if isinstance(images, Sequence):
        require_within_limits(len(images), texts)
        return images
    return _counted(images, texts)


def _counted(images: Iterable[Scorable], texts: int) -> Iterator[Scorable]:
    for number, image in enumerate(images, start=1):
        require_within_limits(number, texts)
        yield image


def require_within_limits(images: int, texts: int = 1) -> None:
    """Refuse a call of more images, or pairs of them and texts, than it may have.

    Raises:
        InputError: names the limit.
    """
    _require(IMAGES, images)
    _require(PAIRS, images * texts)


def _require(limit: Limit, count: int) -> None:
    if fault := limit.fault(count):
        raise InputError(f"a call has {fault}. Make several calls, or set the limit higher")


def checked_count(count: int, name: str) -> int:
    """A number of best results that is asked for.

    Raises:
        InputError: it is no whole number above 0.
    """
    if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count < 1:
        raise InputError(f"{name} must be a whole number above 0, got {count!r}")
    return int(count)


def one_of(top_k: int | None, best: int | None) -> int | None:
    """The number of best results, by its name or its former one.

    Raises:
        InputError: both names are used, with different values.
    """
    if top_k is not None and best is not None and top_k != best:
        raise InputError("best is the former name of top_k: give top_k alone")
    return best if top_k is None else top_k


def checked_texts(texts: Sequence[str] | NDArray[np.str_] | NDArray[np.object_]) -> list[str]:
    """Texts as plain strings.

    Args:
        texts: a sequence or a 1-D array.

    Raises:
        InputError: it is neither, or empty, or longer than a call's may be, or something in it is
            no text; names the place.
    """
    if not _is_list(texts):
        raise InputError(
            f"texts must be a list of strings or a 1-D array of them, got {_described(texts)}"
        )
    if not len(texts):
        raise InputError("texts is empty: there must be a text")
    _require(TEXTS, len(texts))
    return [checked_text(text, f"texts[{place}]") for place, text in enumerate(texts)]


def checked_text(text: object, place: str) -> str:
    """A text as a plain string.

    Args:
        text: whatever the caller has in its place.
        place: what the caller calls it.

    Raises:
        InputError: it is no string, or one that is no text.
    """
    if not isinstance(text, str):
        hint = ": decode it first" if isinstance(text, bytes) else ""
        raise InputError(f"{place} must be a string, got {_described(text)}{hint}")
    if fault := text_fault(text):
        raise InputError(f"{place} has {fault}: {reprlib.repr(text)}")
    return str.__str__(text)  # of numpy's strings and of enumerations, the string alone


def checked_pairs(pairs: Iterable[Any]) -> list[tuple[Scorable, str]]:
    """Pairs of an image and a text as a plain string.

    Raises:
        InputError: something is no pair, or its text is none; names the place. Or there are more
            than a call may have.
    """
    if isinstance(pairs, (str, bytes)) or not _is_iterable(pairs):
        raise InputError(f"pairs must be (image, text) tuples, got {_described(pairs)}")
    checked: list[tuple[Scorable, str]] = []
    for place, pair in enumerate(pairs):
        _require(PAIRS, place + 1)
        if not _is_list(pair) or len(pair) != 2:
            raise InputError(f"pairs[{place}] must be (image, text), got {_described(pair)}")
        image, text = pair
        checked.append((image, checked_text(text, f"the text of pairs[{place}]")))
    _require(TEXTS, len({text for _, text in checked}))
    _require(IMAGES, len({image_identity(image) for image, _ in checked}))
    return checked


def _is_iterable(value: object) -> bool:
    """Whether there is something in it to take; a number in an array's clothes is none."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def _is_list(value: object) -> bool:
    """Whether it has an order and a length: a list, a tuple, an array, a column of a table."""
    if isinstance(value, (str, bytes, bytearray, Mapping)) or getattr(value, "ndim", 1) != 1:
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    return f"{type(value).__name__} {' '.join(reprlib.repr(value).split())}"


def unique_texts(texts: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    """Texts without repetition, and where each of the originals is found among them."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(place), np.array([place[text] for text in texts], np.intp)


def name_of(image: Scorable, position: int) -> str:
    """What results call an image."""
    if isinstance(image, IndexedImage):
        return image.name
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {position}"
