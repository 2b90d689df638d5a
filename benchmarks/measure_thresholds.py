"""Precision and recall on other pairs of thresholds that were chosen on few labelled pairs.

    python benchmarks/measure_thresholds.py

Draws questions of the demonstration's data sets as labelled pairs: each question's picture with its
text, and one negative pair. Of these, some are labelled and choose the threshold, as `dsd-trt
calibrate` does; the others show what it keeps. Repeated with other labelled pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from dsd_trt import Scorer
from dsd_trt.metrics import (
    ChosenThreshold,
    at_threshold,
    calibration_error,
    fit_logistic,
    roc_auc,
    threshold_for_precision,
    threshold_for_recall,
)
from dsd_trt.train.data.catalogue import open_dataset

_SETS = ("shapes-comvg", "shapes-refcocog", "shapes-vqa")
_TARGETS: tuple[tuple[str, Callable[..., ChosenThreshold], float], ...] = (
    ("precision", threshold_for_precision, 0.9),
    ("precision", threshold_for_precision, 0.95),
    ("recall", threshold_for_recall, 0.9),
    ("recall", threshold_for_recall, 0.95),
)


def main() -> None:
    """Measure as the arguments say, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--labelled", type=int, default=200, help="pairs that are labelled")
    parser.add_argument(
        "--others", type=int, default=1000, help="pairs that thresholds are used on"
    )
    parser.add_argument("--repeats", type=int, default=50, help="choices of labelled pairs")
    given = parser.parse_args()
    print(f"{given.labelled} labelled pairs, {given.others} others, {given.repeats} repeats\n")
    print("| data | ROC AUC | asked for | reached on others: mean (5 % to 95 %) | by | recall |")
    print("|---|---:|---|---:|---:|---:|")
    for name in _SETS:
        scores, labels = _scored(name, given.labelled + given.others)
        for row in _rows(name, scores, labels, given.labelled, given.repeats):
            print(f"| {' | '.join(row)} |")


def _scored(name: str, pairs: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores and labels of a data set's pairs: a positive, then its question's negative."""
    rng = np.random.default_rng(0)
    chosen, labels = [], []
    for question in open_dataset(name, None, "test", 0, pairs // 2):  # type: ignore[arg-type]
        others = [it for i, it in enumerate(question.candidates) if i != question.right]
        chosen += [question.candidates[question.right], others[rng.integers(len(others))]]
        labels += [True, False]
    return Scorer.load().score_pairs(chosen).scores, np.array(labels)


def _rows(
    name: str, scores: NDArray[np.float32], labels: NDArray[np.bool_], labelled: int, repeats: int
) -> Iterator[list[str]]:
    questions = np.arange(len(scores)) // 2
    errors, reached = [], [list[tuple[float, float]]() for _ in _TARGETS]
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(len(scores) // 2)
        few = np.isin(questions, order[: labelled // 2])
        a, b = fit_logistic(scores[few], labels[few])
        p = 1 / (1 + np.exp(-(a * scores.astype(np.float64) + b)))
        errors.append(calibration_error(p[~few], labels[~few]))
        for (of, choose, asked), found in zip(_TARGETS, reached, strict=True):
            threshold = choose(p[few], labels[few], asked, groups=questions[few].tolist())
            if threshold.reached:
                point = at_threshold(p[~few], labels[~few], threshold.threshold)
                found.append((getattr(point, of), point.recall))
    auc = f"{roc_auc(scores, labels):.3f}"
    for (of, _, asked), found in zip(_TARGETS, reached, strict=True):
        values = np.array(found).reshape(-1, 2)
        if not len(values):
            yield [name, auc, f"{of} {asked:g}", "no threshold is sure", "-", "-"]
            continue
        low, high = np.quantile(values[:, 0], (0.05, 0.95))
        yield [
            name,
            auc,
            f"{of} {asked:g}",
            f"{values[:, 0].mean():.3f} ({low:.3f} to {high:.3f})",
            f"{np.mean(values[:, 0] >= asked):.0%} of {len(values)}",
            f"{values[:, 1].mean():.2f}",
        ]
    yield [name, auc, "calibration error", f"{np.mean(errors):.3f}", "-", "-"]


if __name__ == "__main__":
    main()
