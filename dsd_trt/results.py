"""Results of scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Progress: TypeAlias = Callable[[int, int | None], None]
"""Progress callback `(done, total)`; `total` is None when unknown."""


@dataclass(frozen=True)
class Failure:
    """An image, text or pair that could not be scored, and why.

    Attributes:
        image: name of the image; None if the text cannot be scored with any image.
        reason: what went wrong, and what to do about it.
        text: the text; None if the image cannot be scored with any text.
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
        images: N names, one per row. A path is its own name; other images are named by position.
        texts: M texts, one per column.
        scores: f(y, x), float32 (N, M), in [0, 1] with LogSumExp or max pooling. NaN where `errors`
            lists the image, the text or the pair, and where a search dropped the text.
        probabilities: match probabilities sigmoid(a f + b), float32 (N, M).
        errors: all images, texts and pairs that could not be scored.
        passes: number of scores at single noise levels, each of one image and one text: passes in
            pair mode.
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
        images: P names, as in `ScoreMatrix`; an image in several pairs has the name of its first.
        texts: P texts, one per pair.
        scores: f(y, x), float32 (P,); NaN where `errors` lists the image, the text or the pair.
        probabilities: match probabilities sigmoid(a f + b), float32 (P,).
        errors: all images, texts and pairs that could not be scored, each listed once.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    errors: tuple[Failure, ...]


@dataclass(frozen=True)
class ScoredImage:
    """Scores of one image, from a stream.

    Attributes:
        image: name of the image, as in `ScoreMatrix`.
        scores: f of each text, float32 (texts,); NaN as in `ScoreMatrix`.
        errors: the image, texts or pairs that could not be scored.
        passes: number of scores at single noise levels, each of the image and one text: passes in
            pair mode.
    """

    image: str
    scores: NDArray[np.float32]
    errors: tuple[Failure, ...]
    passes: int


@dataclass(frozen=True)
class ScoreStream:
    """Images, each yielded when it is scored.

    Attributes:
        errors: texts that cannot be scored with any image.
        images: scored images in their order.
    """

    errors: tuple[Failure, ...]
    images: Iterator[ScoredImage]


@dataclass(frozen=True)
class PairStream:
    """Images of given pairs, each yielded when it is scored.

    Attributes:
        errors: texts that cannot be scored with any image.
        images: scored images in the order of their first pair, with the positions of their pairs.
    """

    errors: tuple[Failure, ...]
    images: Iterator[tuple[ScoredImage, list[int]]]


@dataclass(frozen=True)
class RankedImage:
    """One image's position in a ranking.

    Attributes:
        index: position among the given images, from 0.
        image: name of the image, as in `ScoreMatrix`.
        score: f(y, x), averaged over the noise levels.
        probability: match probability sigmoid(a f + b).
    """

    index: int
    image: str
    score: float
    probability: float
