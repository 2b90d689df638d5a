"""What is known of pairs before they are scored: which are alike, and what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import DsdError, ImageError
from dsd_trt.files.temporary import no_room
from dsd_trt.pairs.source import Pair, PairSource

_LENGTHS = struct.Struct("<II")
_DIGEST = 16  # bytes


@dataclass
class PairSurvey:
    """The pairs of a source, with equal ones found.

    Names and texts wait in a temporary file: memory holds a few dozen bytes per pair.

    Attributes:
        source: source of the pairs.
        count: number of pairs, equal ones included.
        image_of: number of each pair's image, by first appearance, int64 (pairs,); -1 if the pair
            cannot be scored.
        text_of: number of each pair's text, as `image_of`.
        first: place of the first equal pair, int64 (pairs,).
        errors: reasons why pairs cannot be scored, by place.
        digest: hash of all names, texts and states of images.
        absent: number of images that the source does not find.
        example: name of such an image.
        images: number of distinct images.
    """

    source: PairSource
    count: int = 0
    image_of: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    text_of: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    first: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    errors: dict[int, str] = field(default_factory=dict)
    digest: str = ""
    images: int = 0
    absent: int = 0
    example: str = ""

    def __post_init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115 (closed with the survey)
        self._starts = array("q")

    @classmethod
    def of(cls, source: PairSource) -> PairSurvey:
        """Read all pairs once, and look at every image's file without reading it.

        Raises:
            InputError: the source cannot be read.
            DsdError: the disk of temporary files is full.
        """
        survey = cls(source)
        content, valid = hashlib.sha256(), array("b")
        images, texts = bytearray(), bytearray()
        for pair in source.pairs():
            valid.append(survey._add(pair))
            image, text = _digest(pair.image), _digest(pair.text)
            images += image
            texts += text
            content.update(image + text + _digest(pair.error or ""))
        with _named_when_full():
            survey._file.flush()
        good = np.flatnonzero(np.frombuffer(valid.tobytes(), np.int8))
        survey.image_of = np.full(survey.count, -1, np.int64)
        survey.text_of = np.full(survey.count, -1, np.int64)
        survey.first = np.arange(survey.count)
        if len(good):
            survey.image_of[good], first = _numbered(_words(images)[good])
            survey.text_of[good], _ = _numbered(_words(texts)[good])
            both = np.stack([survey.image_of[good], survey.text_of[good]], 1).astype(np.uint64)
            group, first_equal = _numbered(both)
            survey.first[good] = good[first_equal[group]]
            survey.images = len(first)
            for place in good[first].tolist():
                content.update(survey._state(survey.pair(place)[0]))
        survey.digest = content.hexdigest()
        return survey

    def pair(self, place: int) -> tuple[str, str]:
        """Name of the image, and text, of the pair at a place."""
        self._file.seek(self._starts[place])
        name, text = _LENGTHS.unpack(self._file.read(_LENGTHS.size))
        content = self._file.read(name + text)
        return content[:name].decode("utf-8", "surrogatepass"), content[name:].decode()

    def distinct(self) -> Iterator[tuple[int, int, int]]:
        """Place, image and text of each pair to score, in order of the images; equal ones once."""
        places = np.flatnonzero((self.first == np.arange(self.count)) & (self.image_of >= 0))
        places = places[np.argsort(self.image_of[places], kind="stable")]
        for part in np.array_split(places, max(1, len(places) >> 16)):
            yield from zip(
                part.tolist(),
                self.image_of[part].tolist(),
                self.text_of[part].tolist(),
                strict=True,
            )

    def _add(self, pair: Pair) -> bool:
        name, text = pair.image.encode("utf-8", "surrogatepass"), pair.text.encode()
        with _named_when_full():
            self._starts.append(self._file.tell())
            self._file.write(_LENGTHS.pack(len(name), len(text)) + name + text)
        if pair.error is not None:
            self.errors[self.count] = pair.error
        self.count += 1
        return pair.error is None

    def _state(self, name: str) -> bytes:
        try:
            state = self.source.state(name)
        except ImageError:
            state = None
            self.absent += 1
            self.example = self.example or name
        return json.dumps(state).encode()


@contextlib.contextmanager
def _named_when_full() -> Iterator[None]:
    """Raise an error that names the folder of temporary files where it is full."""
    try:
        yield
    except OSError as error:
        raise DsdError(no_room("for names and texts", error)) from error


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


def _words(digests: bytearray) -> NDArray[np.uint64]:
    """Digests as two numbers each, (digests, 2)."""
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def _numbered(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of each key by first appearance, and the place of each number's first key.

    Args:
        keys: two numbers each, (keys, 2).
    """
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: the first of equal keys stays first
    ordered = keys[order]
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = order[begins]  # of each group of equal keys
    by_appearance = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[by_appearance] = np.arange(len(first))
    number = np.empty(len(keys), np.int64)
    number[order] = rank[np.cumsum(begins) - 1]
    return number, first[by_appearance]
