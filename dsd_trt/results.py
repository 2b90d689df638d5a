"""What scoring returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Failure:
    """An image that could not be scored, and why."""

    image: str
    reason: str


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of N images against M texts.

    Attributes:
        images: names, the rows. A path is its own name; other images are named by position.
        texts: the columns.
        scores: f(y, x), in [0, 1] with LogSumExp or max pooling, float32 (N, M); NaN in the row of
            an image that could not be scored, and where a search for the best gave up on a text.
        probabilities: sigmoid(a f + b), float32 (N, M).
        errors: one a row of NaN.
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
        images: names, as in `ScoreMatrix`, one a pair.
        texts: one a pair.
        scores: f(y, x), float32 (P,); NaN where the image could not be scored.
        probabilities: sigmoid(a f + b), float32 (P,).
        errors: one for each image that could not be scored, however many pairs it is in.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    errors: tuple[Failure, ...]


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
