"""The work of a scorer: images with their texts, decoded in advance and counted."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dsd_trt.arguments import checked_progress
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.errors import ImageError
from dsd_trt.image.decoding import decoded_in_order, images_ahead
from dsd_trt.image.preprocess import ImageSource, held_bytes, preprocess
from dsd_trt.image.stored import StoredImage
from dsd_trt.index.index import IndexedImage
from dsd_trt.lists import Outcome
from dsd_trt.results import Progress
from dsd_trt.spans import span

Decoded: TypeAlias = NDArray[Any] | ImageError
"""Pixels of an image, its latent if it comes from an index, or the decoding error."""


@dataclass(frozen=True, eq=False)
class BegunImage:
    """An image whose decoding has begun in another thread; each object is an image of its own."""

    image: ImageSource
    decoded: Future[Decoded]


Scorable: TypeAlias = ImageSource | IndexedImage | BegunImage


@dataclass(frozen=True)
class Job:
    """The name of one image in results, and the indices of its texts among the encoded texts."""

    name: str
    texts: NDArray[np.intp]


class Given(NamedTuple):
    """An image as it was given, which nothing holds any more once it is decoded.

    Attributes:
        image: image in any form, or one whose decoding has begun.
        job: its name and its texts.
        held: number of bytes of memory that are free once it is decoded; 0 if the caller keeps it.
    """

    image: Scorable
    job: Job
    held: int = 0


@dataclass(frozen=True)
class TextScores:
    """Scores of some texts: of one job's image, or of all images of a batch, one after another.

    Attributes:
        scores: f of each text, float32 (texts,); NaN where there is no score.
        lost: True where the engine computed no finite f, bool (texts,).
        tokens: scores of each text's tokens, float32 (texts, 77); None if they were not asked for.
    """

    scores: NDArray[np.float32]
    lost: NDArray[np.bool_]
    tokens: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls, scores: NDArray[np.float32], tokens: NDArray[np.float32] | None = None
    ) -> TextScores:
        """A row in which every NaN is a score the engine could not compute."""
        return cls(scores, np.isnan(scores), tokens)

    def spread(self, known: NDArray[np.bool_]) -> TextScores:
        """Scores of all texts; those that are not `known` get NaN."""
        if known.all():
            return self
        scores, lost = np.full(len(known), np.nan, np.float32), np.zeros(len(known), np.bool_)
        scores[known], lost[known] = self.scores, self.lost
        if self.tokens is None:
            return TextScores(scores, lost)
        tokens = np.full((len(known), self.tokens.shape[1]), np.nan, np.float32)
        tokens[known] = self.tokens
        return TextScores(scores, lost, tokens)


@dataclass(frozen=True)
class Scored:
    """The outcome for one image and its texts, or for one part of a batch.

    Attributes:
        result: the scores, or the reason why the image has no latent.
        passes: number of scores at single noise levels, each of one image and one text: passes in
            pair mode. Walks that made lists are added.
        listed: outcome of the list of its texts; None without one.
    """

    result: TextScores | ImageError
    passes: int
    listed: Outcome | None = None

    def spread(self, known: NDArray[np.bool_]) -> Scored:
        """Scores of all texts; those that are not `known` get NaN."""
        if isinstance(self.result, ImageError):
            return self
        return Scored(self.result.spread(known), self.passes, self.listed)


def decoded_ahead(
    images: Iterable[Given], manifest: Manifest, size: int
) -> Iterator[list[tuple[Job, Decoded]]]:
    """Decode images in several threads, while earlier ones are scored.

    Args:
        images: images with their jobs, consumed in the caller's thread, at most `images_ahead` and
            256 MiB in advance.
        manifest: manifest of the bundle to decode for.
        size: number of images per chunk.

    Raises:
        InputError: an image comes from an index of another image encoder.
    """
    pixels = 3 * manifest.preprocessing.resolution**2  # bytes of a decoded image

    def decode(given: Given) -> Decoded:
        return decode_image(given.image, given.job.name, manifest)

    decoded = decoded_in_order(decode, images, images_ahead(size), lambda it: it.held + pixels)
    with contextlib.closing(decoded):
        jobs = ((given.job, outcome) for given, outcome in decoded)
        while chunk := list(itertools.islice(jobs, size)):
            yield chunk


def decode_image(image: Scorable, name: str, manifest: Manifest) -> Decoded:
    """Decode an image for a bundle.

    Args:
        image: image as it was given.
        name: its name, for a trace.
        manifest: manifest of the bundle to decode for.

    Raises:
        InputError: the image comes from an index of another image encoder.
    """
    if isinstance(image, BegunImage):
        return image.decoded.result()
    to = manifest.preprocessing
    with span("decode", image=name):
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
        self.finished: int = 0  # passes computed or skipped
        self.passes: int = 0

    def add(self, passes: int) -> None:
        """Count passes that were computed."""
        self.passes += passes
        self.skip(passes)

    def walk(self, walks: int) -> None:
        """Count walks that made lists: work, but no scores of pairs."""
        self.passes += walks

    def skip(self, passes: int) -> None:
        """Count passes that are not needed."""
        self.finished += passes
        if self._progress:
            self._progress(self.finished // self._levels, self._total)


def unique_texts(texts: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    """Texts without duplicates, and the index of each original among them."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(place), np.array([place[text] for text in texts], np.intp)


def name_of(image: Scorable, position: int) -> str:
    """Name of an image in results."""
    if isinstance(image, BegunImage):
        return name_of(image.image, position)
    if isinstance(image, (IndexedImage, StoredImage)):
        return image.name
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {position}"


def given_alike(images: Iterable[Scorable], texts: NDArray[np.intp]) -> Iterator[Given]:
    """Images that are scored against the same texts.

    Args:
        images: images in their order; the caller keeps a sequence, and no other iterable.
        texts: indices of the texts among the encoded texts.
    """
    kept = isinstance(images, Sequence)
    for place, image in enumerate(images):
        yield Given(image, Job(name_of(image, place), texts), 0 if kept else held_bytes(image))
