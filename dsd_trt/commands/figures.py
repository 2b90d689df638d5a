"""Figures of labelled pairs as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dsd_trt.errors import counted
from dsd_trt.metrics import Estimate, Summary


def summary_text(summary: Summary) -> str:
    """Figures as a Markdown table, with the number of pairs they are of."""
    table = markdown(
        [pairs_of_images(summary), "", "95 % interval"],
        [[name, *estimate_cells(estimate)] for name, estimate in summary_rows(summary)],
    )
    return f"{table}\nPositive pairs: {summary.positives}.\n"


def summary_rows(summary: Summary) -> list[tuple[str, Estimate]]:
    """Figures with their names, in the order of a table."""
    rows = [("ROC AUC", summary.roc_auc), ("average precision", summary.average_precision)]
    if (calibration := summary.calibration) is not None:
        error = (
            f"calibration error, {counted(calibration.bins, 'bin')} "
            f"(perfect probabilities: {calibration.chance:.3f})"
        )
        rows += [(error, calibration.error), ("Brier score", calibration.brier)]
    for it in summary.at:
        rows.append((f"precision at p >= {it.threshold:g}, which keeps {it.kept}", it.precision))
        rows.append((f"recall at p >= {it.threshold:g}", it.recall))
    return rows


def pairs_of_images(summary: Summary) -> str:
    """Number of pairs, and of the images they are about."""
    return f"{counted(summary.pairs, 'pair')} of {counted(summary.groups, 'image')}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def interval(estimate: Estimate, digits: int = 3) -> str:
    """A figure with its interval, as text."""
    if math.isnan(estimate.value):
        return "-"
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def estimate_cells(estimate: Estimate) -> tuple[str, str]:
    """A figure and its interval as cells of a table; "-" for what is not determined."""
    value, *bounds = (
        "-" if math.isnan(it) else f"{it:.3f}"
        for it in (estimate.value, estimate.low, estimate.high)
    )
    return value, " to ".join(bounds)


def finite(plain: Any) -> Any:
    """JSON values with null in place of NaN, which JSON lacks."""
    if isinstance(plain, dict):
        return {key: finite(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [finite(value) for value in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
