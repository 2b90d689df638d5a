"""With what probability rounding changes the winner: an image's best text, a text's best image."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

_GROUPS, _GROUP = 4, 8
"""Most groups that gaps are put into, and fewest gaps of a group if there are several."""


def winner_changes(scores: Floats, reference: Floats) -> float:
    """Probability that rounding changes which candidate is best.

    Candidates are the texts of one image, or the images of one text. Each of these lines i has a
    gap g_i >= 0 between the best and second best reference score, and a noise d_i: how far rounding
    moved that gap. The order turns where the noise exceeds the gap. Rows and columns each have
    their own standard deviation of the noise, s = sqrt(mean of d_i^2), so the probability of a line
    with x_i = g_i / s is Phi(-x_i), with Phi the normal distribution function.

    A mean of Phi(-x_i) over few lines would depend on whether a near tie is among them. So the
    x_i > 0 of all lines, in order, are put into up to four groups of equal size. Within a group,
    from the last x of the one before (a, at first 0) to its own last (b), they count as evenly
    spread:

        P = (n_0 / 2 + sum over groups of n_group (I(b) - I(a)) / (b - a)) / n
        I(x) = x Phi(-x) - phi(x), the integral of Phi(-x)

    of n lines, n_0 of them ties (g_i = 0) that rounding breaks, for either of both. A tie that
    stays one, as of two equal texts, has the same winner. With k gaps in the first group, P has a
    relative error of some 2 / sqrt(k), because those of an image and of its text are alike. It is
    too high if near ties are rarer than small gaps are.

    The noise is that of the best two alone. BF16's grows with the score, so that all differences of
    a line would understate it. That a third candidate wins is not counted: far above one percent, P
    is too low.

    Args:
        scores: rounded scores, (blocks, images, texts); candidates are of one block.
        reference: scores without rounding, of the same shape.

    Returns:
        The probability, in [0, 1/2]. NaN if a score is not finite, or if all references are equal,
        which have no winner.

    Raises:
        ValueError: the shapes differ, or a block has fewer than two images or texts.
    """
    if scores.shape != reference.shape or scores.ndim != 3 or min(scores.shape[1:]) < 2:
        raise ValueError(
            f"scores {scores.shape} and reference {reference.shape} must both be (blocks, images, "
            "texts) with at least two images and two texts"
        )
    if not (np.isfinite(scores).all() and np.isfinite(reference).all()) or not np.ptp(reference):
        return float("nan")
    # (blocks, images, texts) -> (blocks * images,), and (blocks * texts,) of the columns
    ratios = [
        _ratios(scores.astype(np.float64), reference.astype(np.float64)),
        _ratios(*(it.astype(np.float64).swapaxes(1, 2) for it in (scores, reference))),
    ]
    x = np.concatenate(ratios)
    near = np.sort(x[(x > 0) & np.isfinite(x)])
    turned = 0.5 * np.count_nonzero(x == 0)
    start = 0.0
    for group in np.array_split(near, min(max(near.size // _GROUP, 1), _GROUPS)):
        if group.size:
            turned += group.size * _mean_of_tail(start, float(group[-1]))
            start = float(group[-1])
    return float(turned / x.size)


def _ratios(scores: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gap over noise of the best two of each line, the last axis; infinite where none can turn."""
    best = np.argsort(-reference, axis=-1, kind="stable")[..., :2]  # (blocks, lines, 2)
    gap = -np.diff(np.take_along_axis(reference, best, axis=-1)).ravel()  # (blocks * lines,)
    noise = gap + np.diff(np.take_along_axis(scores, best, axis=-1)).ravel()
    kept = (gap == 0) & (noise == 0)
    deviation = np.sqrt(np.mean(noise**2))
    if deviation == 0:
        return np.full(gap.shape, np.inf)
    return np.where(kept, np.inf, gap / deviation)


def _mean_of_tail(a: float, b: float) -> float:
    """Mean of Phi(-x) over x between a and b."""
    if b == a:
        return _tail(a)
    return (_integral(b) - _integral(a)) / (b - a)


def _integral(x: float) -> float:
    return x * _tail(x) - math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _tail(x: float) -> float:
    """Phi(-x), the probability of a standard normal number above x."""
    return math.erfc(x / math.sqrt(2)) / 2
