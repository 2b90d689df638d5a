"""Scoring the labelled pairs of a table with a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import InputError, counted
from dsd_trt.results import Failure, Progress
from dsd_trt.scorer import Scorer
from dsd_trt.tables.labelled import LabelledPair, LabelledTable


@dataclass(frozen=True)
class ScoredPairs:
    """The pairs of a table that have a score.

    Attributes:
        pairs: pairs with a finite score, in the table's order.
        scores: score of each pair, float32 (pairs,).
        left_out: number of pairs without a score.
        failures: rows, images, texts and pairs that could not be used, and why.
    """

    pairs: tuple[LabelledPair, ...]
    scores: NDArray[np.float32]
    left_out: int
    failures: tuple[Failure, ...]

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Label of each pair, (pairs,)."""
        return np.array([pair.label for pair in self.pairs], np.bool_)

    @property
    def images(self) -> list[str]:
        """Key of each pair's image: pairs of one image are not independent."""
        return [pair.key for pair in self.pairs]

    @property
    def subsets(self) -> NDArray[Any]:
        """Subset of each pair, (pairs,)."""
        return np.array([pair.subset for pair in self.pairs], object)


def score_labelled(
    scorer: Scorer, table: LabelledTable, progress: Progress | None = None
) -> ScoredPairs:
    """Score the pairs of a table.

    Args:
        scorer: scorer to use, at all noise levels of its bundle.
        table: labelled pairs of a table, with the rows it left out.
        progress: callback `(done, total)`, in pairs.

    Raises:
        InputError: no pair can be scored.
        EngineError: the engine cannot compute, as for `Scorer.score`.
    """
    pairs = [(pair.image, pair.text) for pair in table.pairs]
    scores = np.full(len(pairs), np.nan, np.float32)
    stream = scorer.stream_pairs(pairs, None, progress)
    failures = [*table.failures, *stream.errors]
    for image, places in stream.images:
        scores[places] = image.scores
        failures += image.errors
    finite = np.isfinite(scores)
    if not finite.any():
        pairs_of = counted(len(table.pairs), "pair")
        raise InputError(f"{pairs_of}, and none can be scored: {failures[0]}")
    kept = tuple(pair for pair, known in zip(table.pairs, finite, strict=True) if known)
    left_out = len(table.pairs) - len(kept)
    return ScoredPairs(kept, scores[finite], left_out, tuple(failures))
