"""A training run on disk: settings, state, adapter and report in one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dsd_trt.files.whole import write_whole
from dsd_trt.log import get_logger
from dsd_trt.train.data.held_out import hold_out
from dsd_trt.train.diffusion.checkpoint import Checkpoint, read_checkpoint
from dsd_trt.train.fewshot.alongside import alongside
from dsd_trt.train.fewshot.comparison import WorseError, compare
from dsd_trt.train.fewshot.encodings import encode_candidates
from dsd_trt.train.fewshot.examples import Examples, require_choices
from dsd_trt.train.fewshot.fit import (
    Calibrations,
    DivergedError,
    Fitted,
    build_accelerator,
    fit_adapter,
)
from dsd_trt.train.fewshot.model import Validation
from dsd_trt.train.fewshot.report import TrainingReport, plot_curves
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.left_out import LeftOut
from dsd_trt.train.question import Question
from dsd_trt.train.run.device import agreed, best_device, process_state
from dsd_trt.train.run.memory import keep_freed_memory
from dsd_trt.train.run.plan import require_plan
from dsd_trt.train.run.threads import computing_with
from dsd_trt.train.run_key import adapter_identity, model_identity, questions_hash
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.adapter_file import (
    PLAN_NAME,
    REFIT_NAME,
    REPORT_NAME,
    RESUMED,
    STATE_NAME,
)

logger = get_logger(__name__)

_SMALL = 50_000_000  # parameters of a U-Net whose buffers are worth keeping, see its docstring
_LONG = 50  # steps that take longer than a process takes to start
_SECOND = "training on all questions"  # the stage of the second training
_LIBRARIES = ("dsd-trt", "torch", "diffusers", "transformers", "accelerate", "numpy")

Progress = Callable[[str, int, int | None, Mapping[str, float]], None]
"""Progress callback `(stage, done, total, figures)`; `total` is None if it is not known, and
`figures` are metrics by name."""


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
    side_by_side: bool = False,
) -> TrainingReport:
    """Train an adapter, or resume an interrupted call with the same arguments.

    The same questions are answered before and after training: those held out or, without any,
    those learned from. An adapter that is worse by more than a standard error is not written. With
    `refit`, a second training from the same start then learns from all questions, those held out
    included. Its a and b are those of the first.

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
        side_by_side: whether the second training of a small model may run beside the first, in a
            process of its own, where there are two threads. The main module is imported there.

    Raises:
        WorseError: the adapter is worse, and was not written; the report was.
        ModelError: the model cannot be read, or the training state is damaged.
        InputError: the questions cannot be learned from, or `out` holds a run of another plan.
        DsdError: training diverged, as for `fit_adapter`.
    """
    main = process_state().is_main_process  # the only process that writes
    build_accelerator(settings)  # refuses a precision that the device lacks
    parts = hold_out(questions, validation, settings.seed)
    require_choices(parts.learned)
    require_choices(questions)
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
    require_plan(out / PLAN_NAME, plan, RESUMED)
    small = sum(parameter.numel() for parameter in checkpoint.unet.parameters()) < _SMALL
    fit = partial(_fit, checkpoint, settings=settings, start=began, progress=progress)
    with ExitStack() as stack:
        beside = None
        if side_by_side and parts.held and small and _worth_a_process(settings, len(questions)):
            threads = torch.get_num_threads() // 2
            stack.enter_context(computing_with(threads))
            beside = stack.enter_context(alongside(model, start, threads))
        encodings = encode_candidates(
            checkpoint,
            questions,
            resize=settings.resize,
            copies=settings.copies,
            progress=lambda done, total: progress("encoding", done, total, {}),
        )
        left_out = LeftOut()
        every = encodings.examples(questions, left_out.add)
        learned = encodings.usable(parts.learned, "few-shot examples")
        held = encodings.usable(parts.held, "validation questions") if parts.held else None
        if main:  # here, so that nothing is left by a run that could not begin
            out.mkdir(parents=True, exist_ok=True)
            if not any((out / name).exists() for name in RESUMED):
                (out / REPORT_NAME).unlink(missing_ok=True)  # of a run that was refused
            _write(out / PLAN_NAME, plan)
        checkpoint.forget()  # frees the encoders' memory for the U-Net
        if small:
            keep_freed_memory()
        if beside is not None:
            beside.train(every, settings.sized(len(every)), out / REFIT_NAME)
        first = fit("training", learned, held=held, state_path=out / STATE_NAME)
        progress("comparing with before", 0, None, {})
        asked = learned if held is None else held
        comparison = compare(
            checkpoint, began, first.adapter, asked, settings.modes, held_out=held is not None
        )
        adapter, refit_losses = first.adapter, list[float]()
        worse = agreed(comparison.worse)
        if settings.refit and held is not None and not worse and agreed(first.kept_last):
            if beside is not None:
                steps = settings.sized(len(every)).steps
                beside.wait(lambda done, loss: progress(_SECOND, done, steps, {"loss": loss}))
            second = _second(fit, every, first.adapter, out / REFIT_NAME)
            if second is not None and _as_good(checkpoint, first.adapter, second, held, settings):
                adapter, refit_losses = second.adapter, second.losses
    refused = worse and not allow_worse
    report = TrainingReport(
        plan=plan,
        versions={name: version(name) for name in _LIBRARIES},
        questions=(len(learned), len(held or ())),
        left_out=left_out,
        losses=first.losses,
        validations=first.validations,
        best=first.best,
        refit_losses=refit_losses,
        learned_from=len(every if refit_losses else learned),
        comparison=comparison,
    )
    if main:
        if not refused:
            replace(adapter, training=report.summary(settings)).save(out)
        _write(out / REPORT_NAME, report.to_plain())
        plot_curves(report, out / "curves.png")
    if refused:
        raise WorseError(
            "training made the answers worse: chance alone loses so many in "
            f"{comparison.chance:.1%} of trainings. {comparison.line()}. No adapter was written "
            f"to {out}. Train with a lower --learning-rate, fewer --steps or more examples; or "
            "repeat the command with --allow-worse, which writes this one"
        )
    return report


def _worth_a_process(settings: FewShotSettings, questions: int) -> bool:
    """Whether the second training is long enough for a process of its own, and has a thread."""
    alone = process_state().num_processes == 1 and process_state().device.type == "cpu"
    long = settings.sized(questions).steps >= _LONG
    return settings.refit and alone and long and torch.get_num_threads() > 1


def _second(
    fit: Callable[..., Fitted], every: Examples, first: Adapter, state_path: Path
) -> Fitted | None:
    """A training on all questions with the first one's a and b; None if it diverged.

    Raises:
        DivergedError: it diverged in one of several processes, of which others would wait for it.
    """
    calibration = {"pair": (first.a, first.b), "matrix": (first.matrix_a, first.matrix_b)}
    try:
        return fit(_SECOND, every, calibration=calibration, state_path=state_path)
    except DivergedError as error:
        if process_state().num_processes > 1:
            raise
        logger.warning("the adapter is that of the first training; on all questions, %s", error)
        return None


def _as_good(
    checkpoint: Checkpoint,
    first: Adapter,
    second: Fitted,
    held: Examples,
    settings: FewShotSettings,
) -> bool:
    """Whether the second adapter answers questions it learned from as well as the first."""
    found = compare(checkpoint, first, second.adapter, held, settings.modes, held_out=False)
    if agreed(found.worse):
        logger.warning(
            "the adapter is that of the first training; the second, on all questions, answers "
            "fewer of those held out: %d instead of %d of %d",
            *(sum(found.after), sum(found.before), len(found.after)),
        )
        return False
    return True


def _fit(
    checkpoint: Checkpoint,
    stage: str,
    examples: Examples,
    settings: FewShotSettings,
    start: Adapter | None,
    state_path: Path,
    progress: Progress,
    held: Examples | None = None,
    calibration: Calibrations | None = None,
) -> Fitted:
    """Fit an adapter in steps for the number of questions, and tell how far it is."""
    sized = settings.sized(len(examples))
    logger.info(
        "%s on %s: %d questions, %d steps of %d",
        *(stage, checkpoint.device, len(examples), sized.steps, sized.questions),
    )

    def step(done: int, loss: float, outcome: Validation | None) -> None:
        figures = {"loss": loss} | ({"right": outcome.accuracy} if outcome else {})
        progress(stage, done, sized.steps, figures)
        if done == sized.steps and calibration is None:
            progress("fitting probabilities", 0, None, {})

    return fit_adapter(
        checkpoint,
        examples,
        sized,
        start=start,
        validation=held,
        calibration=calibration,
        state_path=state_path,
        report=step,
    )


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")
