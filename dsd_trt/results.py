"""What scoring returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Progress: TypeAlias = Callable[[int, int | None], None]
"""Told, as pairs are done, how many are, and of how many where that is known."""


@dataclass(frozen=True)
class Failure:
    """What could not be scored, and why.

    Attributes:
        image: its name; None where it is a text that cannot be scored, with any image.
        reason: what went wrong and what to do.
        text: None where it is an image that cannot be scored, with any text.
    """

    image: str | None
    reason: str
    text: str | None = None

    def __str__(self) -> str:
        names = [self.image] if self.image is not None else []
        names += [repr(self.text)] if self.text is not None else []
        return f"{' and '.join(names)}: {self.reason}"


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of N images against M texts.

    Attributes:
        images: names, the rows. A path is its own name; other images are named by position.
        texts: the columns.
        scores: f(y, x), in [0, 1] with LogSumExp or max pooling, float32 (N, M); NaN where `errors`
            has the image, the text or the pair, and where a search for the best gave up on a text.
        probabilities: sigmoid(a f + b), float32 (N, M).
        errors: images, texts and pairs that could not be scored.
        passes: (image, text, level) triples that were scored.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    errors: tuple[Failure, ...]
    passes: int


@dataclass(frozen=True)
class PairScores:
    """Scores of P (image, text) pairs.

    Attributes:
        images: names, as in `ScoreMatrix`, one a pair; an image in several has that of the first.
        texts: one a pair.
        scores: f(y, x), float32 (P,); NaN where `errors` has the image, the text or the pair.
        probabilities: sigmoid(a f + b), float32 (P,).
        errors: images, texts and pairs that could not be scored, each once, however many pairs an
            image or a text is in.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    errors: tuple[Failure, ...]


@dataclass(frozen=True)
class ScoredImage:
    """One image's scores, of a run that gives them as they are there.

    Attributes:
        image: its name, as in `ScoreMatrix`.
        scores: f of each of its texts, float32 (texts,); NaN as in `ScoreMatrix`.
        errors: what of it could not be scored.
        passes: (image, text, level) triples that were scored.
    """

    image: str
    scores: NDArray[np.float32]
    errors: tuple[Failure, ...]
    passes: int


@dataclass(frozen=True)
class ScoreStream:
    """Images as they are scored.

    Attributes:
        errors: texts that cannot be scored with any image.
        images: each image in order.
    """

    errors: tuple[Failure, ...]
    images: Iterator[ScoredImage]


@dataclass(frozen=True)
class PairStream:
    """Images of chosen pairs as they are scored.

    Attributes:
        errors: texts that cannot be scored with any image.
        images: each image in the order of its first pair, with the places of its pairs.
    """

    errors: tuple[Failure, ...]
    images: Iterator[tuple[ScoredImage, list[int]]]


@dataclass(frozen=True)
class RankedImage:
    """One image's place in a ranking.

    Attributes:
        index: its position among the images that were ranked.
        image: its name.
        score: f(y, x).
        probability: sigmoid(a f + b).
    """

    index: int
    image: str
    score: float
    probability: float
