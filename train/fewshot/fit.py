"""The training loop of an adapter, with validation, early stopping and resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor

from dsd_trt.bundle.manifest import NOT_FITTED
from dsd_trt.bundle.method import Mode
from dsd_trt.errors import DsdError, InputError, counted
from dsd_trt.files.schema import from_plain
from dsd_trt.log import get_logger
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.batch import sample_batch
from dsd_trt.train.fewshot.comparison import Comparison
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.match_probability import combine, fit_match_probability
from dsd_trt.train.fewshot.model import FewShotModel, Validation, build_model, score_all, validate
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.run.state import require_like, restore_optimizer, resumed, save_state
from dsd_trt.train.scoring.adapter import Adapter

logger = get_logger(__name__)

_SAVE_EVERY = 20.0  # seconds between saved states, besides those at validations
_SAVING = 0.05  # most of the time that saving may take
_HELD_OUT = 5  # validation questions that a and b are fitted to rather than to training questions
_FITTED = 64  # questions that the initial a and b of matrix mode are fitted to


Calibrations = Mapping[Mode, tuple[float, float]]
"""a and b of modes."""


class DivergedError(DsdError):
    """The loss of a training step is NaN or infinite."""


@dataclass(frozen=True)
class Fitted:
    """The result of `fit_adapter`.

    Attributes:
        adapter: adapter of the chosen validation, or of the last step without validation.
        losses: training loss of each step.
        validations: validation results in order of their steps.
        best: validation whose parameters the adapter has; None without validation.
    """

    adapter: Adapter
    losses: list[float]
    validations: list[Validation]
    best: Validation | None

    @property
    def kept_last(self) -> bool:
        """Whether the adapter has the parameters of the last step."""
        return self.best is None or self.best.step == len(self.losses)


Report = Callable[[int, float, Validation | None], None]
"""Callback `(step, loss, validation)` after each step; `validation` is None at most steps."""


def fit_adapter(
    checkpoint: Checkpoint,
    examples: Examples,
    settings: FewShotSettings,
    *,
    start: Adapter | None = None,
    validation: Examples | None = None,
    calibration: Calibrations | None = None,
    state_path: Path | None = None,
    report: Report = lambda step, loss, validation: None,
) -> Fitted:
    """Learn prompts (Eq. 5), head weights (Eq. 7) and a, b, by cross-entropy (Eq. 6).

    Each training step samples one noise level per question. At the end a and b are fitted, unless
    they are given, to the score averaged over all levels, as a bundle computes it. They are fitted
    to the validation questions if there are five: training questions are answered better than
    others are.

    Args:
        checkpoint: base model; its weights stay unchanged.
        examples: encoded training questions, each with a negative pair.
        settings: hyperparameters of few-shot training.
        start: adapter that training starts from; None is the base model.
        validation: validation examples for early stopping and the choice of the step that is kept,
            step 0 included: the last one that is not worse than the best by more than two standard
            errors. None keeps the last step.
        calibration: a and b of each trained mode, to keep; None fits them.
        state_path: file of the training state, from which a later call resumes; None saves none.
        report: callback `(step, loss, validation)` after each step.

    Raises:
        ModelError: the training state is damaged, or is another model's.
        DivergedError: the loss of a step is NaN or infinite.
    """
    accelerator = build_accelerator(settings)
    model = build_model(checkpoint, examples, settings, start).to(accelerator.device)
    with model.updated():
        run = _train(model, accelerator, examples, settings, validation, state_path, report)
        if calibration is None:
            fitted_to = examples
            if validation is not None and len(validation) >= _HELD_OUT:
                fitted_to = validation
            calibration = _calibrate(model, fitted_to, settings)
        adapter = _adapter(model, checkpoint, settings, calibration)
    model.to(checkpoint.device)  # the model shares the checkpoint's U-Net
    return Fitted(adapter, run.losses, run.validations, run.chosen)


def _train(
    model: FewShotModel,
    accelerator: Accelerator,
    examples: Examples,
    settings: FewShotSettings,
    validation: Examples | None,
    state_path: Path | None,
    report: Report,
) -> _Run:
    """Train the model, and leave it with the parameters that are kept."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas = (0.9, settings.beta2)
    wrapped, optimizer = accelerator.prepare(
        model, torch.optim.AdamW(learned, settings.learning_rate, betas, weight_decay=0.01)
    )
    run = _Run(model, optimizer, accelerator, state_path, settings.steps)
    if settings.mode == "matrix" and not run.step:
        # Matrix scores are close together: with the default a, prompts would first learn to
        # spread them.
        few = examples.first(_FITTED)
        score = combine(settings.score, model.match.w, *score_all(model, few, "matrix"))
        model.match.start_from(*fit_match_probability(score, few.labels))
    if validation and not run.validations:
        run.judge(validate(model, validation, 0))
    while run.step < settings.steps and run.patience_spent() < settings.patience:
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(run.step)
        mean = 0.0
        for part in range(settings.accumulate):
            seed = [settings.seed, run.step, part, accelerator.process_index]
            batch = sample_batch(examples, settings, np.random.default_rng(seed))
            with accelerator.accumulate(wrapped), accelerator.autocast():
                logits = wrapped(*batch.inputs(examples, accelerator.device))
                losses = [batch.loss(of_mode, settings.loss) for of_mode in logits]
                loss = torch.stack(losses).mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            mean += loss.item() / settings.accumulate
        run.losses.append(mean)
        # A scaler of FP16 leaves out such a step, and lowers its scale.
        if not math.isfinite(mean) and accelerator.scaler is None:
            raise DivergedError(
                f"training diverged: the loss of step {run.step} of {settings.steps} is {mean}. "
                f"Train with a lower --learning-rate than {settings.learning_rate:g}"
            )
        outcome = None
        at_end = run.step == settings.steps
        if validation and (run.step % settings.validate_every == 0 or at_end):
            outcome = validate(model, validation, run.step)
            run.judge(outcome)
        report(run.step, mean, outcome)
        if run.step % settings.validate_every == 0 or at_end or run.due():
            run.save()
    if run.best is not None:
        model.load_state_dict(run.best, strict=False)
    return run


def build_accelerator(settings: FewShotSettings) -> Accelerator:
    """Device, precision and processes of a training.

    Raises:
        InputError: the device does not compute in the precision of the settings.
    """
    AcceleratorState._reset_state()  # else a process keeps the precision of its first training
    try:
        return Accelerator(
            gradient_accumulation_steps=settings.accumulate,
            mixed_precision=settings.mixed_precision,
            # The last layer's value prompts do not affect the score, so they have no gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise InputError(f"--mixed-precision {settings.mixed_precision}: {error}") from None


class _Run:
    """State of a training run, saved to a file if there is one."""

    def __init__(
        self,
        model: FewShotModel,
        optimizer: Any,
        accelerator: Accelerator,
        path: Path | None,
        steps: int,
    ) -> None:
        self._model, self._optimizer, self._accelerator = model, optimizer, accelerator
        self._path = path
        self.losses: list[float] = []
        self.validations: list[Validation] = []
        self.best: dict[str, Tensor] | None = None
        self._best_at = -1
        self._save_at = time.monotonic() + _SAVE_EVERY
        if self._path is None:
            return
        with resumed(self._path, steps) as state:
            if state is None:
                return
            best: dict[str, Tensor] | None = state["best"]
            for learned in (state["learned"], best):
                if learned is not None:
                    require_like(learned, model.learned())
            model.load_state_dict(state["learned"], strict=False)
            restore_optimizer(optimizer, state["optimizer"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            self.losses = [float(loss) for loss in state["losses"]]
            self.validations = [from_plain(Validation, row) for row in state["validations"]]
            self.best, self._best_at = best, int(state["best_at"])
            if self._best_at not in (range(len(self.validations)) if best else (-1,)):
                raise ValueError(f"best_at is {self._best_at} of {len(self.validations)}")

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return len(self.losses)

    @property
    def chosen(self) -> Validation | None:
        """The validation whose parameters are kept; None before the first."""
        return self.validations[self._best_at] if self.validations else None

    def judge(self, outcome: Validation) -> None:
        """Add a validation, and keep the learned parameters unless one before it was better.

        It was better if this one is worse than it by more than two standard errors. Of a handful
        of questions, some answers more tell nothing, and the choice among many steps would only
        find the luckiest.
        """
        self.validations.append(outcome)
        best = max(self.validations, key=lambda validation: validation.accuracy)
        if not Comparison(True, best.answers, outcome.answers).clearly_worse:
            self.best, self._best_at = self._model.learned(), len(self.validations) - 1

    def patience_spent(self) -> int:
        """Number of validations since the chosen one."""
        return len(self.validations) - 1 - self._best_at

    def due(self) -> bool:
        """Whether so much would be lost by a kill that the state is saved between validations."""
        return time.monotonic() >= self._save_at

    def save(self) -> None:
        """Write the state to disk, on the main process alone."""
        if self._path is None or not self._accelerator.is_main_process:
            return
        began, scaler = time.monotonic(), self._accelerator.scaler
        state = {
            "learned": self._model.learned(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "losses": self.losses,
            "validations": [asdict(it) | {"answers": [*it.answers]} for it in self.validations],
            "best": self.best,
            "best_at": self._best_at,
        }
        save_state(self._path, state)
        ended = time.monotonic()
        self._save_at = ended + max(_SAVE_EVERY, (ended - began) / _SAVING)


def _calibrate(model: FewShotModel, examples: Examples, settings: FewShotSettings) -> Calibrations:
    """Fitted a and b of each trained mode, to the scores of some examples.

    A mode whose positive pairs do not score higher than the negative ones is left out: a falling
    probability would order pairs against their scores.
    """
    fitted = dict[Mode, tuple[float, float]]()
    for mode in settings.modes:
        score = combine(settings.score, model.match.w, *score_all(model, examples, mode))
        a, b = fit_match_probability(score, examples.labels)
        if a > 0:
            fitted[mode] = (a, b)
        else:
            logger.warning(
                "the adapter has no match probability in %s mode: over all images of %s, right "
                "texts do not score higher than wrong ones. Fit one to more pairs, dsd-trt "
                "calibrate BUNDLE --data TABLE",
                *(mode, counted(len(examples), "question")),
            )
    return fitted


def _adapter(
    model: FewShotModel,
    checkpoint: Checkpoint,
    settings: FewShotSettings,
    calibration: Calibrations,
) -> Adapter:
    prompts = model.scoring.prompts
    assert prompts is not None
    with torch.no_grad():
        heads = model.heads().cpu().split(model.scoring.heads)
    none = (NOT_FITTED.a, NOT_FITTED.b)
    a, b = calibration.get("pair", none)
    matrix_a, matrix_b = calibration.get("matrix", none)
    return Adapter(
        prompt_config=prompts.config,
        prompt_state={name: value.cpu() for name, value in prompts.state_dict().items()},
        head_mode=settings.head_mode,
        head_weights=heads,
        score=settings.score,
        denoising_weight=model.match.w,
        a=a,
        b=b,
        mode=settings.mode,
        matrix_a=matrix_a,
        matrix_b=matrix_b,
        levels=settings.levels,
        resize=settings.resize,
        base=checkpoint.weight_hashes,
        merged={} if model.updates is None else model.updates.merged(),
    )
