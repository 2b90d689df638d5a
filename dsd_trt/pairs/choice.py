"""Which pairs a filter keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_trt.errors import InputError, counted
from dsd_trt.metrics import CONFIDENCE, threshold_for_precision
from dsd_trt.metrics.threshold import LEAST_KEPT, least_kept
from dsd_trt.pairs.share import share_of

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Choice:
    """The pairs that a filter keeps, and why.

    Attributes:
        kept: whether each pair is kept, bool (pairs,); a pair without a score never is.
        rule: what was asked for and how it was met, a sentence for people.
        reason: why the other pairs are dropped.
    """

    kept: NDArray[np.bool_]
    rule: str
    reason: str


def above(probabilities: Numbers, least: float) -> Choice:
    """Pairs whose probability is at least a threshold."""
    rule = f"kept: probability {least:g} or more"
    return Choice(probabilities >= least, rule, f"probability below {least:g}")


def best(scores: Numbers, asked: str) -> Choice:
    """Pairs with the best scores; of equal scores, the first ones.

    Args:
        scores: score of each pair, NaN where there is none.
        asked: a number of pairs, or a share of those that have a score, such as "30%".
    """
    there = int(np.count_nonzero(~np.isnan(scores)))
    count = math.ceil(share * there - 1e-9) if (share := share_of(asked)) else int(asked)
    order = np.argsort(-scores, kind="stable")[: min(count, there)]  # NaN comes last
    kept = np.zeros(len(scores), np.bool_)
    kept[order] = True
    rule = f"kept: the best {asked} by score"
    if len(order):
        rule += f", {scores[order[-1]]:.4f} or more"
    if share is None and count >= there:
        rule += f"; that is all, as {counted(there, 'pair')} {'has' if there == 1 else 'have'} one"
        rule += f". A share has a %: {asked}%" if count <= 100 else ""
    return Choice(kept, rule, f"not among the best {asked}")


def expected_precision(probabilities: Numbers, precision: float) -> Choice:
    """As many pairs as possible, whose mean probability is at least a precision.

    The mean probability of the kept pairs is their expected precision, as far as probabilities are
    calibrated for these pairs.
    """
    there = np.flatnonzero(~np.isnan(probabilities))
    order = there[np.argsort(-probabilities[there], kind="stable")]
    ordered = probabilities[order].astype(np.float64)
    mean = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
    last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]  # of equal probabilities
    enough = np.flatnonzero(last & (mean >= precision - 1e-9))
    count = int(enough[-1]) + 1 if len(enough) else 0
    kept = np.zeros(len(probabilities), np.bool_)
    kept[order[:count]] = True
    lowest = float(ordered[count - 1]) if count else None
    rule = f"kept: expected precision {precision:g}, from the calibrated probabilities"
    if lowest is None:
        rule += "; no pair reaches it"
        return Choice(kept, rule, f"expected precision below {precision:g}")
    rule += f": {mean[count - 1]:.4f} with probability {lowest:.4f} or more"
    return Choice(kept, rule, f"probability below {lowest:.4g}")


def measured_precision(
    scores: Numbers,
    labelled_scores: Numbers,
    labels: Sequence[bool],
    images: Sequence[object],
    precision: float,
) -> Choice:
    """Pairs above the threshold that reaches a precision on labelled pairs.

    Args:
        scores: score of each pair, NaN where there is none.
        labelled_scores: scores of the labelled pairs, all finite.
        labels: labels of these pairs.
        images: their images: pairs of one image are not independent.
        precision: precision to reach, in (0, 1).

    Raises:
        InputError: no threshold reaches it on these pairs.
    """
    if not len(labels):
        raise InputError("no labelled pair has a score: --target-precision cannot be measured")
    found = threshold_for_precision(labelled_scores, labels, precision, groups=images)
    if not found.reached:
        shown = f"with {counted(len(labels), 'labelled pair')}, at most {found.bound:.3f} is"
        if found.bound >= precision:
            shown = (
                f"only the best {found.kept} of {counted(len(labels), 'labelled pair')} show it, "
                f"which may be luck: at least {LEAST_KEPT} must"
            )
        raise InputError(
            f"no threshold is sure to reach the precision {precision:g}: {shown}. "
            f"{_needed(labels, precision)}. Ask for less, choose with --keep-best, or leave the "
            "labels out for the precision that is expected of calibrated probabilities: dsd-trt "
            "calibrate BUNDLE --data TABLE. With --resume, nothing is scored again"
        )
    rule = (
        f"kept: precision {precision:g}, measured on {counted(len(labels), 'labelled pair')}: "
        f"{found.precision:.4f} there, on others at least {found.bound:.4f} with {CONFIDENCE:.0%} "
        f"confidence, with score {found.threshold:.4g} or more; recall {found.recall:.4f}"
    )
    reason = f"score below {found.threshold:.4g}"
    return Choice(scores >= np.float32(found.threshold), rule, reason)


def _needed(labels: Sequence[bool], precision: float) -> str:
    """Fewest labelled pairs that a precision takes, as a sentence."""
    kept, share = least_kept(precision), sum(labels) / len(labels)
    least = math.ceil(kept / share - 1e-9)
    need = f"Even if all are positive, {counted(kept, 'kept pair')} must have a label"
    if least > len(labels):
        return f"{need}: if {share:.0%} are positive, label at least {counted(least, 'pair')}"
    return f"{need}. So many are there, but too many negatives score as high as positives"


def histogram(values: Numbers, kept: NDArray[np.bool_], name: str, width: int = 40) -> list[str]:
    """Lines of a histogram: ten ranges with counts and bars, `*` for kept pairs, `-` for others.

    Args:
        values: probability or score of each pair; pairs with NaN are left out.
        kept: whether each pair is kept, bool (pairs,).
        name: "probability" or "score", for the heading.
        width: length of the longest bar, in characters.
    """
    known = ~np.isnan(values)
    values, kept = values[known].astype(np.float64), kept[known]
    if not len(values):
        return []
    ends = (0.0, 1.0) if name == "probability" else (float(values.min()), float(values.max()))
    counts, edges = np.histogram(values, 10, ends)
    of_kept, _ = np.histogram(values[kept], 10, ends)
    most = int(counts.max())
    lines = [f"{name:>15}  {'rows':>8}  {'kept':>8}"]
    for i, (count, good) in enumerate(zip(counts.tolist(), of_kept.tolist(), strict=True)):
        bar = "*" * math.ceil(width * good / most) + "-" * math.ceil(width * (count - good) / most)
        lines.append(f"{edges[i]:7.3f}-{edges[i + 1]:7.3f}  {count:8}  {good:8}  {bar}".rstrip())
    return lines
