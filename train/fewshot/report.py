"""The record of a training run: what `report.json`, the adapter and the plot tell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from dsd_trt.files.whole import whole
from dsd_trt.train.fewshot.comparison import Comparison
from dsd_trt.train.fewshot.model import Validation
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.left_out import LeftOut

mpl.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class TrainingReport:
    """The record of a training run, written to `report.json`.

    Attributes:
        plan: everything that determines the outcome: model, data and settings.
        versions: version of each library, by its name.
        questions: numbers of training and of validation questions of the first training, whose
            are losses, validations, best and comparison too.
        left_out: questions that could not be used; `left_out` and `errors` in `report.json`.
        losses: training loss of each step.
        validations: validation results in order of their steps.
        best: validation whose parameters were kept; None without validation.
        refit_losses: training loss of each step of the second training, on all questions; empty if
            the adapter is that of the first.
        learned_from: number of questions that the adapter was trained on.
        comparison: answers before and after training, in `report.json` with what they tell.
    """

    plan: Mapping[str, Any]
    versions: Mapping[str, str]
    questions: tuple[int, int]
    left_out: LeftOut
    losses: Sequence[float]
    validations: Sequence[Validation]
    best: Validation | None
    refit_losses: Sequence[float]
    learned_from: int
    comparison: Comparison

    def to_plain(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        return {
            **asdict(self),
            "validations": [validation.to_plain() for validation in self.validations],
            "best": self.best and self.best.to_plain(),
            "comparison": self.comparison.to_plain(),
            **self.left_out.to_plain(),
        }

    def summary(self, settings: FewShotSettings) -> dict[str, Any]:
        """What an adapter records of its training: plan, size, and how answers changed.

        What was "compared" is the adapter of the first training.

        Args:
            settings: settings of the plan, whose steps and learning rate may be open.
        """
        sized = settings.sized(self.learned_from)
        return {
            **self.plan,
            "steps": sized.steps,
            "learning_rate": sized.learning_rate,
            "steps_done": len(self.refit_losses or self.losses),
            "learned_from": self.learned_from,
            "refit": bool(self.refit_losses),
            "compared": {
                "learned_from": self.questions[0],
                "best": self.best and self.best.to_plain(),
                "before": sum(self.comparison.before),
                "after": sum(self.comparison.after),
                "questions": len(self.comparison.after),
                "held_out": self.comparison.held_out,
                "by_chance": self.comparison.chance,
            },
        }


def plot_curves(report: TrainingReport, path: Path) -> None:
    """Plot the loss of each step, and loss and accuracy of each validation."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for losses, label in ((report.losses, "training"), (report.refit_losses, "on all questions")):
        if losses:
            left.plot(range(1, len(losses) + 1), losses, alpha=0.5, label=label)
    steps = [v.step for v in report.validations]
    left.plot(steps, [v.loss for v in report.validations], "o-", label="validation")
    left.set(xlabel="step", ylabel="loss")
    left.legend()
    right.plot(steps, [100 * v.accuracy for v in report.validations], "o-")
    right.set(xlabel="step", ylabel="accuracy, %", ylim=(0, 100), title="validation")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with whole(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)
