"""What `dsd-trt calibrate` reports: the fit, its quality before and after, thresholds, subsets."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.manifest import Calibration, FittedOn
from dsd_trt.bundle.probability import largest_shift
from dsd_trt.commands.figures import finite, interval, markdown, pairs_of_images
from dsd_trt.commands.labelled import ScoredPairs
from dsd_trt.errors import InputError, counted
from dsd_trt.files.schema import to_plain
from dsd_trt.match_probability import match_probability
from dsd_trt.metrics import (
    Bin,
    ChosenThreshold,
    Summary,
    calibration_error,
    class_weights,
    cross_fitted,
    fit_logistic,
    reliability,
    summarize,
    threshold_for_precision,
    threshold_for_recall,
)
from dsd_trt.metrics.threshold import CONFIDENCE, LEAST_KEPT
from dsd_trt.scorer import Scorer
from dsd_trt.tables.labelled import LabelledTable

_FLAT = 1e-6  # a difference of logits that is rounding
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Targets:
    """Precisions and recalls that thresholds are wanted for."""

    precision: tuple[float, ...]
    recall: tuple[float, ...]


@dataclass(frozen=True)
class Reached:
    """A threshold for a precision or a recall.

    Attributes:
        of: what is to be reached, "precision" or "recall".
        asked: the precision or recall to reach.
        found: the threshold, and what it keeps of the labelled pairs.
    """

    of: str
    asked: float
    found: ChosenThreshold


@dataclass(frozen=True)
class Subset:
    """Calibration of the pairs with one value of a column.

    Attributes:
        name: the value; "" if the cell is empty.
        pairs: number of pairs with this value.
        positives: number of positive pairs among them.
        share: share of positives among them, weighed to the prior.
        probability: their mean probability; equal to the share if it is well calibrated.
        error: expected calibration error of these pairs.
    """

    name: str
    pairs: int
    positives: int
    share: float
    probability: float
    error: float


@dataclass(frozen=True)
class Report:
    """A fitted calibration and its quality.

    Attributes:
        bundle: folder of the bundle that was scored with.
        mode: mode that the scores were computed in.
        engine: engine that computed them.
        calibration: the fitted a and b.
        rows: number of rows in the table.
        unlabelled: number of rows without a label.
        unusable: number of other rows that make no pair, such as those without an image file.
        left_out: number of labelled pairs without a score.
        before: figures with the probabilities the bundle had; None if it had none.
        after: figures with the fitted ones, cross-validated.
        cross_validated: whether `after` is cross-validated; too few pairs are judged by their own
            fit.
        bins_before: reliability of the bundle's own probabilities; empty without any.
        bins: reliability of the fitted ones.
        thresholds: thresholds that were asked for, on the fitted probabilities.
        subsets: calibration of each value of the column that was asked for.
    """

    bundle: str
    mode: str
    engine: str
    calibration: Calibration
    rows: int
    unlabelled: int
    unusable: int
    left_out: int
    before: Summary | None
    after: Summary
    cross_validated: bool
    bins_before: tuple[Bin, ...]
    bins: tuple[Bin, ...]
    thresholds: tuple[Reached, ...]
    subsets: tuple[Subset, ...]

    def worse(self) -> str | None:
        """That the new probabilities fit no better than those before; None if they do."""
        before = None if self.before is None else self.before.calibration
        after = self.after.calibration
        if before is None or after is None or after.error.value <= before.error.value:
            return None
        return (
            f"the calibration error is {after.error.value:.3f}, with the probabilities before it "
            f"is {before.error.value:.3f}: these pairs do not improve them. Label more and "
            "calibrate again; --dry-run reports and leaves the bundle as it is"
        )


def measure(
    scorer: Scorer,
    scored: ScoredPairs,
    table: LabelledTable,
    name: str,
    prior: float | None,
    targets: Targets,
    seed: int,
) -> Report:
    """Fit a calibration to scored pairs, and judge it.

    Args:
        scorer: scorer that computed the scores.
        scored: the pairs with their scores.
        table: all labelled pairs of the table.
        name: name of the table, recorded in the bundle.
        prior: share of positives that probabilities are for; None is the pairs'.
        targets: precisions and recalls that thresholds are wanted for.
        seed: random seed of the cross-validation and of the intervals.

    Raises:
        InputError: the pairs have one label or one score, positives do not score higher, or the
            engine's rounding moves the probabilities too far.
    """
    labels, images, scores = scored.labels, scored.images, scored.scores
    a, b = fit_logistic(scores, labels, prior)
    weights = None if prior is None else class_weights(labels, prior)
    had = None if scorer.why_no_probability() else scorer.manifest.calibration_of(scorer.mode)
    own = None if had is None else match_probability(scores, had).astype(np.float64)
    held_out = cross_fitted(scores, labels, images, prior, seed)
    fitted = match_probability(scores, Calibration(a, b))
    judged = fitted.astype(np.float64) if held_out is None else held_out
    after = summarize(scores, labels, images, judged, (0.5,), prior, seed)
    if a * float(np.ptp(scores)) < _FLAT:
        raise InputError(
            f"positives do not score higher than negatives (ROC AUC {interval(after.roc_auc)}): no "
            "probability can be made of these scores. Look at the labels: 1 is for texts that "
            "describe their image"
        )
    if (rounding := scorer.rounding) is not None and rounding.moves(Calibration(a, b)):
        raise InputError(
            f"{rounding.precision} moves scores by up to {rounding.difference:.2g}, and so these "
            f"probabilities by up to {largest_shift(Calibration(a, b), rounding.difference):.2f}: "
            f"fit them in FP32, --engine {rounding.reference}"
        )
    before = None if own is None else summarize(scores, labels, images, own, (), prior, seed)
    assert after.calibration is not None
    record = FittedOn(
        table=name,
        pairs=len(scores),
        positives=int(labels.sum()),
        images=len(set(images)),
        prior=after.prior,
        mode=scorer.mode,
        levels=scorer.manifest.method.noise_levels.fractions,
        calibration_error=round(after.calibration.error.value, 6),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    return Report(
        bundle=str(scorer.bundle.folder),
        mode=scorer.mode,
        engine=str(scorer.engine),
        calibration=Calibration(a, b, record),
        rows=table.rows,
        unlabelled=table.unlabelled,
        unusable=len(table.failures),
        left_out=scored.left_out,
        before=before,
        after=after,
        cross_validated=held_out is not None,
        bins_before=() if own is None else tuple(reliability(own, labels, None, weights)),
        bins=tuple(reliability(judged, labels, None, weights)),
        thresholds=tuple(_thresholds(fitted, labels, images, targets, prior)),
        subsets=tuple(_subsets(scored.subsets, judged, labels, weights)),
    )


def _thresholds(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    images: Sequence[str],
    targets: Targets,
    prior: float | None,
) -> list[Reached]:
    chosen = [
        *(("precision", it, threshold_for_precision) for it in targets.precision),
        *(("recall", it, threshold_for_recall) for it in targets.recall),
    ]
    return [
        Reached(of, asked, choose(probabilities, labels, asked, groups=images, prior=prior))
        for of, asked, choose in chosen
    ]


def _subsets(
    of_pair: NDArray[Any], judged: Floats, labels: NDArray[np.bool_], weights: Floats | None
) -> list[Subset]:
    names = list(dict.fromkeys(of_pair.tolist()))
    if names == [""]:
        return []
    found = []
    for name in names:
        chosen = of_pair == name
        own = None if weights is None else weights[chosen]
        found.append(
            Subset(
                name=name,
                pairs=int(chosen.sum()),
                positives=int(labels[chosen].sum()),
                share=float(np.average(labels[chosen], weights=own)),
                probability=float(np.average(judged[chosen], weights=own)),
                error=calibration_error(judged[chosen], labels[chosen], None, own),
            )
        )
    return found


def to_json(report: Report) -> str:
    """The report as JSON; figures that the pairs do not determine are null."""
    return json.dumps(finite(to_plain(report)), indent=2) + "\n"


def as_text(report: Report) -> str:
    """The report as Markdown."""
    after = report.after
    parts = [
        _about(report),
        _quality(report),
        "Reliability after the fit; well calibrated where both columns agree.\n\n"
        + markdown(
            ["pairs", "mean probability", "share of positives"],
            [[str(it.pairs), f"{it.probability:.3f}", f"{it.positives:.3f}"] for it in report.bins],
        ),
    ]
    if report.subsets:
        head = ["subset", "pairs", "positive", "share", "mean probability", "calibration error"]
        rows = [
            [
                it.name or "(empty)",
                str(it.pairs),
                str(it.positives),
                f"{it.share:.3f}",
                f"{it.probability:.3f}",
                f"{it.error:.3f}",
            ]
            for it in report.subsets
        ]
        parts.append(markdown(head, rows))
    parts += [f"{_threshold(it, after.pairs)}\n" for it in report.thresholds]
    return "\n".join(parts)


def _about(report: Report) -> str:
    after = report.after
    left = [f"{counted(report.unlabelled, 'row')} without a label"] * (report.unlabelled > 0)
    left += [f"{counted(report.unusable, 'row')} that cannot be used"] * (report.unusable > 0)
    left += [f"{counted(report.left_out, 'pair')} without a score"] * (report.left_out > 0)
    lines = [
        f"{pairs_of_images(after)}, {after.positives} positive, from {counted(report.rows, 'row')}"
        + (f"; left out: {', '.join(left)}" if left else ""),
        f"probability = sigmoid(a f + b), a = {report.calibration.a:.6g}, "
        f"b = {report.calibration.b:.6g}, for {100 * after.prior:.1f} % positives, "
        f"in {report.mode} mode",
        f"ROC AUC {interval(after.roc_auc)}, average precision "
        f"{interval(after.average_precision)}; 95 % intervals",
    ]
    return "".join(f"{line}\n" for line in lines)


def _quality(report: Report) -> str:
    before, after = report.before and report.before.calibration, report.after.calibration
    assert after is not None
    how = "cross-validated" if report.cross_validated else "on the pairs it was fitted to"
    rows = [
        [
            f"calibration error, {counted(after.bins, 'bin')}",
            interval(before.error) if before else "none fitted",
            interval(after.error),
        ],
        [
            "that of perfect probabilities",
            f"{before.chance:.3f}" if before else "-",
            f"{after.chance:.3f}",
        ],
        ["Brier score", interval(before.brier) if before else "-", interval(after.brier)],
    ]
    return markdown(["", "before", f"after, {how}"], rows)


def _threshold(reached: Reached, pairs: int) -> str:
    found, sure = reached.found, f"{100 * CONFIDENCE:.0f} % confidence"
    kept = (
        f"it keeps {found.kept} of {counted(pairs, 'pair')}, precision {found.precision:.3f}, "
        f"recall {found.recall:.3f}"
    )
    if found.reached:
        return (
            f"{reached.of} {reached.asked:g}: keep p >= {found.threshold!r}; {kept}. Other pairs "
            f"have a {reached.of} of at least {found.bound:.3f} with {sure}"
        )
    few = f"; fewer than {LEAST_KEPT} may be luck" if found.bound >= reached.asked else ""
    return (
        f"{reached.of} {reached.asked:g}: no threshold is sure to reach it. Closest is p >= "
        f"{found.threshold!r}: {kept}, which shows a {reached.of} of at least {found.bound:.3f} "
        f"with {sure}{few}. Label more pairs"
    )
