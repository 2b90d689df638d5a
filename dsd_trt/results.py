"""Results of scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import MissingExtraError, counted
from dsd_trt.failure import Failure as Failure
from dsd_trt.ranking import (
    Ranked,
    RankedImage,
    RankedText,
    best_first,
    checked_count,
    checked_ids,
    ranked,
)

Progress: TypeAlias = Callable[[int, int | None], None]
"""Progress callback `(done, total)`; `total` is None when unknown."""


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of N images against M texts.

    Attributes:
        images: N names, one per row. A path is its own name; other images are named by position.
        texts: M texts, one per column.
        scores: f(y, x), float32 (N, M), in [0, 1] with LogSumExp or max pooling. NaN where `errors`
            lists the image, the text or the pair, and where a search dropped the text.
        probabilities: match probabilities sigmoid(a f + b), float32 (N, M); NaN without a score,
            and everywhere if (a, b) were not fitted to these scores, see `Scorer.calibration`.
        errors: all images, texts and pairs that could not be scored.
        passes: number of scores at single noise levels, each of one image and one text: passes in
            pair mode. Walks that made lists are added.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    errors: tuple[Failure, ...]
    passes: int

    def __repr__(self) -> str:
        size = f"{counted(len(self.images), 'image')} x {counted(len(self.texts), 'text')}"
        return f"ScoreMatrix({size}, {_summary(self.scores, self.probabilities, self.errors)})"

    def _repr_html_(self) -> str:
        """A picture of the matrix, which notebooks show instead of `repr`."""
        from dsd_trt.notebook import matrix_html

        return matrix_html(self.images, self.texts, self.scores, self.probabilities, repr(self))

    def top_images(
        self, top_k: int | None = None, ids: Sequence[Any] | None = None
    ) -> list[list[RankedImage]]:
        """The best images of each text, best first; what has no score is left out.

        Args:
            top_k: number of images per text; None is all.
            ids: names of your own for the images, one each.

        Raises:
            InputError: `top_k` is not a positive count, or `ids` are no list of this length.
        """
        ids = checked_ids(ids, len(self.images), "images")
        scores, probabilities = self.scores.T, self.probabilities.T
        return _best_of_rows(RankedImage, self.images, scores, probabilities, top_k, ids)

    def top_texts(
        self, top_k: int | None = None, ids: Sequence[Any] | None = None
    ) -> list[list[RankedText]]:
        """The best texts of each image, best first; what has no score is left out.

        Args:
            top_k: number of texts per image; None is all.
            ids: names of your own for the texts, one each.

        Raises:
            InputError: `top_k` is not a positive count, or `ids` are no list of this length.
        """
        ids = checked_ids(ids, len(self.texts), "texts")
        return _best_of_rows(RankedText, self.texts, self.scores, self.probabilities, top_k, ids)

    def to_pandas(self) -> Any:
        """A pandas table with a row per pair: image, text, score, probability, error.

        Rows are ordered by image, then by text. `error` is None where there is a score.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        count = len(self.texts)
        images = [name for name in self.images for _ in range(count)]
        return _table(
            images, self.texts * len(self.images), self.scores, self.probabilities, self.errors
        )


@dataclass(frozen=True)
class PairScores:
    """Scores of P (image, text) pairs.

    Attributes:
        images: P names, as in `ScoreMatrix`; an image in several pairs has the name of its first.
        texts: P texts, one per pair.
        scores: f(y, x), float32 (P,); NaN where `errors` lists the image, the text or the pair.
        probabilities: match probabilities sigmoid(a f + b), float32 (P,); NaN as in `ScoreMatrix`.
        errors: all images, texts and pairs that could not be scored, each listed once.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    errors: tuple[Failure, ...]

    def __repr__(self) -> str:
        size = counted(len(self.texts), "pair")
        return f"PairScores({size}, {_summary(self.scores, self.probabilities, self.errors)})"

    def top_images(
        self, top_k: int | None = None, ids: Sequence[Any] | None = None
    ) -> dict[str, list[RankedImage]]:
        """The best images of each text, best first; what has no score is left out.

        Args:
            top_k: number of images per text; None is all.
            ids: names of your own for the pairs, one each.

        Returns:
            The images by text, texts in order of their first pair. The `index` of an image is the
            position of its pair.

        Raises:
            InputError: `top_k` is not a positive count, or `ids` are no list of this length.
        """
        return self._best_of_each(self.texts, RankedImage, self.images, top_k, ids)

    def top_texts(
        self, top_k: int | None = None, ids: Sequence[Any] | None = None
    ) -> dict[str, list[RankedText]]:
        """The best texts of each image, best first; what has no score is left out.

        Args:
            top_k: number of texts per image; None is all.
            ids: names of your own for the pairs, one each.

        Returns:
            The texts by image, images in order of their first pair. The `index` of a text is the
            position of its pair.

        Raises:
            InputError: `top_k` is not a positive count, or `ids` are no list of this length.
        """
        return self._best_of_each(self.images, RankedText, self.texts, top_k, ids)

    def _best_of_each(
        self,
        keys: Sequence[str],
        of: type[Ranked],
        names: Sequence[str],
        top_k: int | None,
        ids: Sequence[Any] | None,
    ) -> dict[str, list[Ranked]]:
        """The best pairs of each key, best first; keys in order of their first pair."""
        ids = checked_ids(ids, len(self.texts), "pairs")
        top_k = _checked_top_k(top_k)
        pairs: dict[str, list[int]] = {}  # positions by key
        for place, key in enumerate(keys):
            pairs.setdefault(key, []).append(place)
        places = {
            key: [own[i] for i in best_first(self.scores[own], top_k)] for key, own in pairs.items()
        }
        f, p = self.scores, self.probabilities
        return {key: ranked(of, best, names, f, p, ids) for key, best in places.items()}

    def to_pandas(self) -> Any:
        """A pandas table with a row per pair, as `ScoreMatrix.to_pandas`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return _table(self.images, self.texts, self.scores, self.probabilities, self.errors)


@dataclass(frozen=True)
class ScoredImage:
    """Scores of one image, from a stream.

    Attributes:
        image: name of the image, as in `ScoreMatrix`.
        scores: f of each text, float32 (texts,); NaN as in `ScoreMatrix`.
        errors: the image, texts or pairs that could not be scored.
        passes: number of scores at single noise levels, each of the image and one text: passes in
            pair mode. Walks that made lists are added.
        tokens: scores of each text's tokens, float32 (texts, 77); None if they were not asked for.
    """

    image: str
    scores: NDArray[np.float32]
    errors: tuple[Failure, ...]
    passes: int
    tokens: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        size = counted(len(self.scores), "text")
        return f"ScoredImage({self.image!r}, {size}, {_summary(self.scores, None, self.errors)})"


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


def _best_of_rows(
    of: type[Ranked],
    names: Sequence[str],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    top_k: int | None,
    ids: Sequence[Any] | None,
) -> list[list[Ranked]]:
    """The best columns of each row of a matrix, best first."""
    top_k = _checked_top_k(top_k)
    return [
        ranked(of, best_first(f, top_k), names, f, p, ids)
        for f, p in zip(scores, probabilities, strict=True)
    ]


def _checked_top_k(top_k: int | None) -> int | None:
    return None if top_k is None else checked_count(top_k, "top_k")


def _table(
    images: Sequence[str],
    texts: Sequence[str],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    errors: Sequence[Failure],
) -> Any:
    """A pandas table of pairs; scores of any shape in the pairs' order."""
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError(
            f"to_pandas needs pandas, which cannot be imported here ({error}). Install it with: "
            "pip install 'dsd-trt[pandas]', or pandas alone"
        ) from error
    reasons = {(it.image, it.text): it.reason for it in reversed(errors)}
    found = [
        reasons.get((image, None)) or reasons.get((None, text)) or reasons.get((image, text))
        if np.isnan(score)
        else None
        for image, text, score in zip(images, texts, scores.ravel(), strict=True)
    ]
    columns = {
        "image": list(images),
        "text": list(texts),
        "score": scores.ravel(),
        "probability": probabilities.ravel(),
        "error": pd.Series(found, dtype=object),
    }
    return pd.DataFrame(columns)


def _summary(
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float32] | None,
    errors: Sequence[Failure],
) -> str:
    """Ranges of scores and probabilities, and what failed, for a repr."""
    parts = [f"scores {_range(scores, 4)}"]
    if probabilities is not None:
        known = not np.isnan(probabilities).all() or np.isnan(scores).all()
        parts.append(f"probabilities {_range(probabilities, 3)}" if known else "no probabilities")
    if missing := int(np.isnan(scores).sum()):
        parts.append(f"{missing} without a score")
    if errors:
        parts.append(counted(len(errors), "error"))
    return ", ".join(parts)


def _range(values: NDArray[np.float32], digits: int) -> str:
    known = values[~np.isnan(values)]
    if not len(known):
        return "none"
    return f"{known.min():.{digits}f} to {known.max():.{digits}f}"
