"""Measuring lists: how far down matrix mode's order the best candidates of pair mode stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.lists import RULE, Lists, Measured
from dsd_trt.lists import gap_of, list_order, need_of
from dsd_trt.search import eliminate
from dsd_trt.train.fewshot.fit import DivergedError
from dsd_trt.train.imitation.two_modes import Matched, TwoModes
from dsd_trt.train.scoring.relations import Relations
from dsd_trt.train.scoring.token_heads import TokenHeads

Array = NDArray[np.float32]

BEST = (1, 5)
"""Numbers of best candidates that lists are measured for."""

CANDIDATES = 100
"""Candidates of a measured list, at most."""

_STORED = 64  # smallest needs that are kept
_ERROR = 1e-3  # of the search for the best, which the lists are measured against
_SLOPE = 0.7  # of the spread of pair mode's scores about their estimates


@dataclass(frozen=True)
class Ranks:
    """Places at which pair mode's best candidate stands in the lists, from 1.

    Attributes:
        texts: one for each measured list of texts.
        images: one for each measured list of images.
        candidates: number of candidates of each list.
    """

    texts: NDArray[np.intp]
    images: NDArray[np.intp]
    candidates: int

    def line(self) -> str:
        """The ranks of both kinds in words, for the user."""
        parts = []
        for what, ranks in (("texts of an image", self.texts), ("images of a text", self.images)):
            first, deep = 100 * float((ranks == 1).mean()), int(np.quantile(ranks, 0.99))
            parts.append(f"{what}: first in {first:.0f}%, among the first {deep} in 99%")
        return f"pair mode's best of {self.candidates} in matrix mode's order, {'; '.join(parts)}"


@dataclass(frozen=True)
class Block:
    """Images and texts scored with each other in both modes.

    Attributes:
        first: pair mode's scores at the first noise level, (images, texts).
        mean: its means over all levels, NaN where a candidate is among the best neither of its
            image nor of its text, (images, texts).
        matched: what matrix mode sees of them.
        texts: places of the texts.
    """

    first: Array
    mean: Array
    matched: Matched
    texts: NDArray[np.intp]


def score_blocks(
    modes: TwoModes,
    images: NDArray[np.intp],
    texts: NDArray[np.intp],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Block]:
    """Score images and texts in blocks, each as many images as texts, in pair mode.

    No image and no text is in two blocks; those beyond the last whole block are left out.

    Args:
        modes: model to score with.
        images: places of the images.
        texts: places of the texts.
        progress: callback `(done, total)`, in images.
    """
    side = min(CANDIDATES, len(images), len(texts))
    blocks: list[Block] = []
    count = min(len(images), len(texts)) // side
    for number in range(count):
        of_block, chosen = (it[number * side :][:side] for it in (images, texts))
        scores = np.full((modes.levels, side, side), np.nan, np.float32)
        matched = []
        for row, image in enumerate(of_block.tolist()):
            matched.append(modes.match(image, chosen))
            scores[0, row] = modes.score(np.full(side, image), chosen, 0)
            progress(number * side + row + 1, count * side)
        mean = np.full((side, side), np.nan, np.float32)
        for place in range(side):
            for line, found in (
                (np.s_[place, :], _best(modes, scores, of_block[[place]], chosen, np.s_[place, :])),
                (np.s_[:, place], _best(modes, scores, of_block, chosen[[place]], np.s_[:, place])),
            ):
                mean[line] = np.where(np.isnan(found), mean[line], found)
        blocks.append(Block(scores[0], mean, Matched.stack(matched), chosen))
    return blocks


def _best(
    modes: TwoModes,
    scores: Array,
    images: NDArray[np.intp],
    texts: NDArray[np.intp],
    line: tuple[int | slice, int | slice],
) -> Array:
    """Means over all levels of the best of a row or a column; scores that are missing are added."""
    count = max(len(images), len(texts))
    x, y = np.broadcast_to(images, count), np.broadcast_to(texts, count)

    def score_at(candidates: NDArray[np.intp], level: int) -> NDArray[np.floating]:
        known = scores[(level, *line)]
        missing = candidates[np.isnan(known[candidates])] if level else candidates[:0]
        if len(missing):
            known[missing] = modes.score(x[missing], y[missing], level)
        return known[candidates]

    return eliminate(score_at, count, modes.levels, min(max(BEST), count), _ERROR)


def measure(
    modes: TwoModes,
    heads: TokenHeads,
    blocks: Sequence[Block],
    relations: Relations | None = None,
) -> tuple[Lists, Ranks]:
    """Lists of some blocks, made with token heads, and with relations if there are some.

    A list in which a score or an estimate is not finite is left out.

    Args:
        modes: model that the blocks were scored with.
        heads: token heads that make the lists.
        blocks: at least one block of images and texts.
        relations: relations that make them too; None is without.

    Raises:
        DivergedError: none is left of one kind.
    """
    estimates = [modes.estimates(heads, it.matched, it.texts, relations) for it in blocks]
    missed = np.concatenate([it.first for it in blocks]) - np.concatenate(estimates)
    missed = missed[np.isfinite(missed).all(axis=1)]
    slope = (
        _SLOPE * float((missed - missed.mean(axis=1, keepdims=True)).std()) if len(missed) else 0.0
    )
    side = len(blocks[0].texts)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {"texts": {}, "images": {}}
    ranks: dict[str, list[int]] = {"texts": [], "images": []}
    for block, of_block in zip(blocks, estimates, strict=True):
        for kind, turn in (("texts", np.asarray), ("images", np.transpose)):
            lines = map(turn, (of_block, block.first, block.mean))
            for estimate, first, mean in zip(*lines, strict=True):
                order = np.argsort(-np.nan_to_num(mean, nan=-np.inf), kind="stable")
                winners = mean[order[: min(max(BEST), side)]]
                if not all(np.isfinite(it).all() for it in (estimate, first, winners)):
                    continue
                ranks[kind].append(int(np.flatnonzero(list_order(estimate) == order[0])[0]) + 1)
                for best in (it for it in BEST if it < side):
                    need = need_of(estimate, first, order[:best], best, slope, side)
                    gap = gap_of(first, order[:best], best)
                    found[kind].setdefault(str(best), []).append((need, gap))
    if not all(ranks.values()):
        raise DivergedError(
            "no list can be measured: in each of them a score is not finite. Score some of the "
            "images and texts with dsd-trt eval, which names those that have none, and leave them "
            "out"
        )
    kept = {
        kind: {best: _measured(of_best) for best, of_best in of_kind.items()}
        for kind, of_kind in found.items()
    }
    lists = Lists(modes.list_level, side, slope, kept["texts"], kept["images"], RULE)
    return lists, Ranks(np.array(ranks["texts"]), np.array(ranks["images"]), side)


def _measured(found: Sequence[tuple[float, float]]) -> Measured:
    needs, gaps = (sorted(it) for it in zip(*found, strict=True))
    finite = [need for need in needs if math.isfinite(need)]
    return Measured(len(found), tuple(finite[:_STORED]), tuple(gaps[::-1][:_STORED]))
