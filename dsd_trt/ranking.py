"""Rankings: the best images of each text, and the best texts of each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import InputError, counted

_CHUNK = 4096  # images between two reductions


@dataclass(frozen=True)
class RankedImage:
    """One image's position in a ranking.

    Attributes:
        index: position among the given images, from 0.
        image: name of the image, as in `ScoreMatrix`.
        score: f(y, x), averaged over the noise levels.
        probability: match probability sigmoid(a f + b); NaN without a calibration.
        id: the caller's own name of the image; None if none was given.
    """

    index: int
    image: str
    score: float
    probability: float
    id: Any = None


@dataclass(frozen=True)
class RankedText:
    """One text's position in a ranking.

    Attributes:
        index: position among the given texts, from 0.
        text: description that was ranked.
        score: f(y, x), averaged over the noise levels.
        probability: match probability sigmoid(a f + b); NaN without a calibration.
        id: the caller's own name of the text; None if none was given.
    """

    index: int
    text: str
    score: float
    probability: float
    id: Any = None


Ranked = TypeVar("Ranked", RankedImage, RankedText)


def checked_count(count: int, name: str) -> int:
    """A requested number of results, validated.

    Raises:
        InputError: it is not a positive whole number.
    """
    if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count < 1:
        raise InputError(f"{name} must be a whole number above 0, got {count!r}")
    return int(count)


def best_first(scores: NDArray[np.floating[Any]], top_k: int | None) -> list[int]:
    """Positions of the best scores, best first; NaN is left out, of equal ones the first leads.

    Args:
        scores: scores of the candidates, (candidates,).
        top_k: number of positions; None is all.
    """
    scored = np.flatnonzero(~np.isnan(scores))
    if top_k is not None and top_k < len(scored):
        # Of equal scores at the limit the first ones stay, so all of them go on.
        limit = np.partition(scores[scored], len(scored) - top_k)[len(scored) - top_k]
        scored = scored[scores[scored] >= limit]
    order = scored[np.argsort(-scores[scored], kind="stable")][:top_k]
    return [int(place) for place in order]


def ranked(
    of: type[Ranked],
    places: Iterable[int],
    names: Sequence[str],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    ids: Sequence[Any] | None,
) -> list[Ranked]:
    """The images or texts at some positions, in the order of these.

    Args:
        of: class of the entries, `RankedImage` or `RankedText`.
        places: positions among the names, as from `best_first`.
        names: names of the images, or the texts.
        scores: score f of each name, (names,).
        probabilities: match probability of each name, (names,).
        ids: names of the caller's own, (names,); None if none were given.
    """
    return [
        of(
            at,
            names[at],
            float(scores[at]),
            float(probabilities[at]),
            None if ids is None else ids[at],
        )
        for at in places
    ]


def checked_ids(ids: Sequence[Any] | None, count: int | None, what: str) -> Sequence[Any] | None:
    """The caller's names, one for each image, text or pair.

    Args:
        ids: names of any type; None for none.
        count: number of what is named; None if it is not known.
        what: "images", "texts" or "pairs", for the message.

    Raises:
        InputError: they are no list, or of another length.
    """
    if ids is None:
        return None
    if isinstance(ids, (str, bytes)) or not (hasattr(ids, "__len__") and hasattr(ids, "__iter__")):
        raise InputError(f"ids must be a list with one for each of the {what}, got {ids!r:.80}")
    ids = list(ids)  # a table's column would be looked up by its own index
    if count is not None and len(ids) != count:
        wanted = counted(count, what.removesuffix("s"))
        raise InputError(f"{counted(len(ids), 'id')} for {wanted}: give one for each")
    return ids


class BestImages:
    """The best images of each of several texts, of scores that arrive one image at a time.

    With `top_k`, memory does not grow with the number of images.

    Args:
        texts: number of texts that images are ranked for.
        top_k: number of images to keep per text; None is all.
    """

    def __init__(self, texts: int, top_k: int | None) -> None:
        self._top_k, self._count = top_k, 0
        self._names: dict[int, str] = {}  # of the images that are kept, by position
        self._places = [np.empty(0, np.intp) for _ in range(texts)]  # best first
        self._scores = [np.empty(0, np.float32) for _ in range(texts)]
        self._waiting: list[NDArray[np.float32]] = []

    def __len__(self) -> int:
        """Number of images added."""
        return self._count + len(self._waiting)

    def add(self, name: str, scores: NDArray[np.float32]) -> None:
        """Add an image with its scores, (texts,); NaN for texts it is not ranked for."""
        self._names[len(self)] = name
        self._waiting.append(scores)
        if self._top_k is not None and len(self._waiting) == _CHUNK:
            self._reduce()

    def rankings(self) -> list[list[tuple[int, str, np.float32]]]:
        """Position, name and score of the best images of each text, best first."""
        self._reduce()
        return [
            [
                (place, self._names[place], score)
                for place, score in zip(places.tolist(), scores, strict=True)
            ]
            for places, scores in zip(self._places, self._scores, strict=True)
        ]

    def _reduce(self) -> None:
        """Merge the waiting images into the rankings."""
        if not self._waiting:
            return
        new = np.arange(self._count, len(self))
        for text, column in enumerate(np.stack(self._waiting).T):  # (waiting,)
            scores = np.concatenate([self._scores[text], column])
            places = np.concatenate([self._places[text], new])
            order = best_first(scores, self._top_k)
            self._scores[text], self._places[text] = scores[order], places[order]
        self._count += len(new)
        self._waiting.clear()
        kept = set[int]().union(*(places.tolist() for places in self._places))
        self._names = {place: self._names[place] for place in sorted(kept)}
