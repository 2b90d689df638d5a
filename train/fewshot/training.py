"""A training run on disk: settings, state, adapter and report in one folder."""

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
from dsd_trt.log import get_logger
from dsd_trt.train.data.held_out import HeldOut, hold_out
from dsd_trt.train.diffusion.checkpoint import Checkpoint, read_checkpoint
from dsd_trt.train.fewshot.comparison import Comparison, WorseError, compare
from dsd_trt.train.fewshot.examples import Examples, encode_questions, require_choices
from dsd_trt.train.fewshot.fit import Fitted, build_accelerator, fit_adapter
from dsd_trt.train.fewshot.model import Validation
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.left_out import LeftOut
from dsd_trt.train.question import Question
from dsd_trt.train.run.device import best_device, process_state
from dsd_trt.train.run.memory import keep_freed_memory
from dsd_trt.train.run.plan import require_plan
from dsd_trt.train.run_key import adapter_identity, model_identity, questions_hash
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.adapter_file import CONFIG_NAME, PLAN_NAME, REPORT_NAME, STATE_NAME

mpl.use("Agg")
import matplotlib.pyplot as plt

logger = get_logger(__name__)

_SMALL = 50_000_000  # parameters of a U-Net whose buffers are worth keeping, see its docstring
_LIBRARIES = ("dsd-trt", "torch", "diffusers", "transformers", "accelerate", "numpy")

Progress = Callable[[str, int, int | None, Mapping[str, float]], None]
"""Progress callback `(stage, done, total, figures)`; `total` is None if it is not known, and
`figures` are metrics by name."""


@dataclass(frozen=True)
class TrainingReport:
    """The record of a training run, written to `report.json`.

    Attributes:
        plan: everything that determines the outcome: model, data and settings.
        versions: version of each library, by its name.
        questions: numbers of training and of validation questions.
        left_out: questions that could not be used; `left_out` and `errors` in `report.json`.
        losses: training loss of each step.
        validations: validation results in order of their steps.
        best: validation whose adapter was kept; None without validation.
        comparison: answers before and after training, in `report.json` with what they tell.
    """

    plan: Mapping[str, Any]
    versions: Mapping[str, str]
    questions: tuple[int, int]
    left_out: LeftOut
    losses: Sequence[float]
    validations: Sequence[Validation]
    best: Validation | None
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
        """What an adapter records of its training, with settings as they were chosen."""
        return {
            **self.plan,
            "steps": settings.steps,
            "learning_rate": settings.learning_rate,
            "steps_done": len(self.losses),
            "best": self.best and self.best.to_plain(),
            "before": sum(self.comparison.before),
            "after": sum(self.comparison.after),
            "compared": len(self.comparison.after),
            "held_out": self.comparison.held_out,
            "by_chance": self.comparison.chance,
        }


def train_adapter(
    model: str,
    questions: Sequence[Question],
    settings: FewShotSettings,
    out: Path,
    source: Mapping[str, Any],
    validation: float = 0.15,
    progress: Progress = lambda stage, done, total, figures: None,
    *,
    start: Path | None = None,
    allow_worse: bool = False,
) -> TrainingReport:
    """Train an adapter, or resume an interrupted call with the same arguments.

    The same questions are answered before and after training: those held out or, without any,
    those learned from. An adapter that is worse by more than a standard error is not written.

    Args:
        model: base model: "shapes", a folder, a file or a repository, see `find_model`.
        questions: few-shot examples, validation questions included.
        settings: hyperparameters of few-shot training.
        out: folder for the adapter, `report.json`, `curves.png` and the training state.
        source: description of the questions' origin, recorded as part of the plan.
        validation: share of the questions' sources held out for early stopping, in [0, 1].
        progress: callback `(stage, done, total, figures)`, called per batch and per step.
        start: folder of the adapter that training starts from; None is the base model.
        allow_worse: whether to write an adapter that is worse than what training started from.

    Raises:
        WorseError: the adapter is worse, and was not written; the report was.
        ModelError: the model cannot be read, or the training state is damaged.
        InputError: the questions cannot be learned from, or `out` holds a run of another plan.
        DsdError: training diverged, as for `fit_adapter`.
    """
    first = process_state().is_main_process  # the only process that writes
    build_accelerator(settings)  # refuses a precision that the device lacks
    parts = hold_out(questions, validation, settings.seed)
    require_choices(parts.learned)
    began = None if start is None else Adapter.load(start)
    progress("reading the model", 0, None, {})
    checkpoint = read_checkpoint(model, best_device())
    identity = model_identity(checkpoint)
    plan = {
        "model": identity["weights"],
        "configuration": identity["configuration"],
        **source,
        "from": None if start is None else adapter_identity(start),
        "validation": validation,
        "content": questions_hash(questions),  # a data set of the same name may have changed
        **asdict(settings),
    }
    require_plan(out / PLAN_NAME, plan, (STATE_NAME, CONFIG_NAME))

    def step(done: int, loss: float, outcome: Validation | None) -> None:
        figures = {"loss": loss} | ({"right": outcome.accuracy} if outcome else {})
        progress("training", done, settings.steps, figures)
        if done == settings.steps:
            progress("fitting probabilities", 0, None, {})

    left_out = LeftOut()
    examples, held = _encode(checkpoint, parts, settings, left_out, progress)
    if first:  # here, so that nothing is left by a run that could not begin
        out.mkdir(parents=True, exist_ok=True)
        _write(out / PLAN_NAME, plan)
    checkpoint.forget()  # frees the encoders' memory for the U-Net
    if sum(parameter.numel() for parameter in checkpoint.unet.parameters()) < _SMALL:
        keep_freed_memory()
    settings = settings.sized(len(examples))
    logger.info(
        "training on %s: %d questions, %d steps of %d",
        *(checkpoint.device, len(examples), settings.steps, settings.questions),
    )
    fitted = fit_adapter(
        checkpoint, examples, settings, start=began, validation=held, folder=out, report=step
    )
    progress("comparing with before", 0, None, {})
    asked = examples if held is None else held
    comparison = compare(
        checkpoint, began, fitted.adapter, asked, settings.modes, held_out=held is not None
    )
    report = TrainingReport(
        plan=plan,
        versions={name: version(name) for name in _LIBRARIES},
        questions=(len(examples), len(held or ())),
        left_out=left_out,
        losses=fitted.losses,
        validations=fitted.validations,
        best=fitted.best,
        comparison=comparison,
    )
    refused = comparison.worse and not allow_worse
    if first:
        if not refused:
            replace(fitted.adapter, training=report.summary(settings)).save(out)
        _write(out / REPORT_NAME, report.to_plain())
        plot_curves(fitted, out / "curves.png")
    if refused:
        raise WorseError(
            "training made the answers worse: chance alone loses so many in "
            f"{comparison.chance:.1%} of trainings. {comparison.line()}. No adapter was written "
            f"to {out}. Train with a lower --learning-rate, fewer --steps or more examples; or "
            "repeat the command with --allow-worse, which writes this one"
        )
    return report


def _encode(
    checkpoint: Checkpoint,
    parts: HeldOut,
    settings: FewShotSettings,
    left_out: LeftOut,
    progress: Progress,
) -> tuple[Examples, Examples | None]:
    """Examples to learn from, and those to validate on; the latter are None if there are none.

    Raises:
        InputError: none of the questions of a part can be used.
    """
    encode = partial(encode_questions, checkpoint, resize=settings.resize, left_out=left_out.add)
    examples = encode(
        parts.learned,
        copies=settings.copies,
        progress=lambda done, total: progress("encoding", done, total, {}),
    )
    left_out.require_some(len(examples), "few-shot examples")
    of_examples = left_out.questions
    held = encode(parts.held) if parts.held else None
    if held is not None:
        left_out.require_some(len(held), "validation questions", of_examples)
    return examples, held


def plot_curves(fitted: Fitted, path: Path) -> None:
    """Plot the loss of each step, and loss and accuracy of each validation."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot(range(1, len(fitted.losses) + 1), fitted.losses, alpha=0.5, label="training")
    steps = [v.step for v in fitted.validations]
    left.plot(steps, [v.loss for v in fitted.validations], "o-", label="validation")
    left.set(xlabel="step", ylabel="loss")
    left.legend()
    right.plot(steps, [100 * v.accuracy for v in fitted.validations], "o-")
    right.set(xlabel="step", ylabel="accuracy, %", ylim=(0, 100))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with whole(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")
