"""A training run on disk: plan, state, adapter and report in one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl

from dsd_trt.files.whole import whole, write_whole
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.fewshot.examples import encode_questions
from dsd_trt.train.fewshot.fit import Fitted, fit_adapter
from dsd_trt.train.fewshot.model import Validation
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.left_out import LeftOut
from dsd_trt.train.question import Question, split
from dsd_trt.train.run.device import best_device, process_state
from dsd_trt.train.run.state import require_plan
from dsd_trt.train.run_key import model_identity, questions_hash

mpl.use("Agg")
import matplotlib.pyplot as plt

_LIBRARIES = ("dsd-trt", "torch", "diffusers", "transformers", "accelerate", "numpy")

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Told (stage, done, total, figures)."""


@dataclass(frozen=True)
class TrainingReport:
    """Figures of a run, as `report.json` has them.

    Attributes:
        plan: everything that decides the outcome: model, data, settings.
        versions: of the libraries.
        questions: how many were learned from, and how many kept for validation.
        left_out: those that could not be used; `left_out` and `errors` in `report.json`.
        losses: of every step.
        validations: in order.
        best: the one whose adapter was kept; None without validation.
    """

    plan: Mapping[str, Any]
    versions: Mapping[str, str]
    questions: tuple[int, int]
    left_out: LeftOut
    losses: Sequence[float]
    validations: Sequence[Validation]
    best: Validation | None


def train_adapter(
    model: str,
    questions: Sequence[Question],
    settings: FewShotSettings,
    out: Path,
    source: Mapping[str, Any],
    validation: float = 0.15,
    progress: Progress = lambda stage, done, total, figures: None,
) -> TrainingReport:
    """Train an adapter, going on where an earlier call with the same arguments was stopped.

    Args:
        model: what `read_checkpoint` takes.
        questions: the examples.
        settings: sizes and lengths.
        out: gets the adapter, `report.json` and `curves.png`.
        source: where the questions come from, for the report; it takes part in the plan.
        validation: share of the questions' sources kept to stop early by.
        progress: told of every step.

    Raises:
        ModelError: no such model.
        InputError: questions that cannot be learned from.
        InputError: `out` holds a run with another plan.
    """
    first = process_state().is_main_process  # of several processes, the one that writes
    checkpoint = read_checkpoint(model, best_device())
    identity = model_identity(checkpoint)
    plan = {
        "model": identity["weights"],
        "configuration": identity["configuration"],
        **source,
        "validation": validation,
        "content": questions_hash(questions),  # of the questions: a name says little
        **asdict(settings),
    }
    _remember(out / "plan.json", plan, write=first)
    kept, learned = split(questions, validation, settings.seed)

    def encoding(done: int, total: int) -> None:
        progress("encoding", done, total, {})

    def step(done: int, loss: float, outcome: Validation | None) -> None:
        figures = {"loss": loss} | ({"right": outcome.accuracy} if outcome else {})
        progress("training", done, settings.steps, figures)

    left_out = LeftOut()
    encode = partial(encode_questions, checkpoint, resize=settings.resize, left_out=left_out.add)
    examples = encode(learned, progress=encoding)
    left_out.require_some(len(examples), "few-shot examples")
    of_examples = left_out.questions
    held = encode(kept) if kept else None
    if held is not None:
        left_out.require_some(len(held), "validation questions", of_examples)
    checkpoint.forget()  # the encoders: their memory is the U-Net's from here on
    fitted = fit_adapter(
        checkpoint,
        examples,
        settings,
        validation=held,
        folder=out,
        report=step,
    )
    best = max(fitted.validations, key=lambda v: (v.accuracy, -v.loss), default=None)
    report = TrainingReport(
        plan=plan,
        versions={name: version(name) for name in _LIBRARIES},
        questions=(len(examples), len(held or ())),
        left_out=left_out,
        losses=fitted.losses,
        validations=fitted.validations,
        best=best,
    )
    summary = {**plan, "steps_done": len(fitted.losses), "best": best and asdict(best)}
    if first:
        replace(fitted.adapter, training=summary).save(out)
        _write(out / "report.json", {**asdict(report), **left_out.to_plain()})
        plot_curves(fitted, out / "curves.png")
    return report


def plot_curves(fitted: Fitted, path: Path) -> None:
    """Loss of every step, and accuracy and loss of every validation."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot(range(1, len(fitted.losses) + 1), fitted.losses, alpha=0.5, label="training")
    steps = [v.step for v in fitted.validations]
    left.plot(steps, [v.loss for v in fitted.validations], "o-", label="validation")
    left.set(xlabel="step", ylabel="loss")
    left.legend()
    right.plot(steps, [100 * v.accuracy for v in fitted.validations], "o-")
    right.set(xlabel="step", ylabel="questions answered right, %", ylim=(0, 100))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with whole(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def _remember(path: Path, plan: Mapping[str, Any], *, write: bool) -> None:
    """A folder belongs to one plan: going on with another would mix two runs."""
    require_plan(path, plan)
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, plan)


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")
