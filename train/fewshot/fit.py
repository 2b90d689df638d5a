"""The training loop: resumable, validated, stopped early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor

from dsd_trt.files.schema import from_plain
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.fewshot.batch import sample_batch
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.match_probability import combine, fit_match_probability
from dsd_trt.train.fewshot.model import FewShotModel, Validation, build_model, score_all, validate
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.run.state import require_like, restore_optimizer, resumed, save_state
from dsd_trt.train.scoring.adapter import Adapter

_FITTED = 64  # questions that the logistic of matrix mode starts from


@dataclass(frozen=True)
class Fitted:
    """What training gives.

    Attributes:
        adapter: of the best validation.
        losses: of every step.
        validations: in order.
    """

    adapter: Adapter
    losses: list[float]
    validations: list[Validation]


Report = Callable[[int, float, Validation | None], None]
"""Called with (step, loss, validation where there was one) after every step."""


def fit_adapter(
    checkpoint: Checkpoint,
    examples: Examples,
    settings: FewShotSettings,
    *,
    validation: Examples | None = None,
    folder: Path | None = None,
    report: Report = lambda step, loss, validation: None,
) -> Fitted:
    """Learn prompts (Eq. 5), head weights (Eq. 7) and the logistic by cross-entropy (Eq. 6).

    At the end a and b are fitted again, to the score averaged over all levels, which is what is
    served.

    Args:
        checkpoint: the base model; not changed.
        examples: to learn from.
        settings: sizes and lengths.
        validation: other examples, to stop early by and to choose the best step, before the first
            one included; without them the last step counts.
        folder: where training state is kept, to go on from when called again; None keeps none.
        report: told of every step.
    """
    AcceleratorState._reset_state()  # a process would keep the first precision it trained in
    accelerator = Accelerator(
        gradient_accumulation_steps=settings.accumulate,
        mixed_precision=settings.mixed_precision,
        # The last layer's value prompts change nothing that is scored, and get no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    model = build_model(checkpoint, examples, settings).to(accelerator.device)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapped, optimizer = accelerator.prepare(
        model, torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=0.01)
    )
    run = _Run(model, optimizer, accelerator, folder)
    if settings.mode == "matrix" and not run.step:
        # Its scores lie so close together that prompts would first be bent to draw them apart.
        few = examples.first(_FITTED)
        score = combine(settings.score, model.match.w, *score_all(model, few, "matrix"))
        model.match.start_from(*fit_match_probability(score, few.labels))
    if validation and not run.validations:
        run.judge(validate(model, validation, 0))  # what is learned has to beat the base model
    while run.step < settings.steps and run.patience_spent() < settings.patience:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - run.step / settings.steps)
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
        outcome = None
        at_end = run.step == settings.steps
        if validation and (run.step % settings.validate_every == 0 or at_end):
            outcome = validate(model, validation, run.step)
            run.judge(outcome)
        report(run.step, mean, outcome)
        if run.step % settings.validate_every == 0 or at_end:
            run.save()
    if run.best is not None:
        model.load_state_dict(run.best, strict=False)
    adapter = _adapter(model, checkpoint, examples, settings)
    model.to(checkpoint.device)  # whose U-Net it holds
    return Fitted(adapter, run.losses, run.validations)


class _Run:
    """Where training stands, kept in `training.ckpt` if there is a folder for it."""

    def __init__(
        self, model: FewShotModel, optimizer: Any, accelerator: Accelerator, folder: Path | None
    ) -> None:
        self._model, self._optimizer, self._accelerator = model, optimizer, accelerator
        self._path = folder and folder / "training.ckpt"
        self.losses: list[float] = []
        self.validations: list[Validation] = []
        self.best: dict[str, Tensor] | None = None
        self._best_at = -1
        if self._path is None:
            return
        with resumed(self._path) as state:
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
        """Steps done."""
        return len(self.losses)

    def judge(self, outcome: Validation) -> None:
        """Keep what was learned if no validation before was better."""
        self.validations.append(outcome)
        ranks = [(v.accuracy, -v.loss) for v in self.validations]
        if ranks[-1] == max(ranks):
            self.best, self._best_at = self._model.learned(), len(ranks) - 1

    def patience_spent(self) -> int:
        """Validations since the best one."""
        return len(self.validations) - 1 - self._best_at

    def save(self) -> None:
        """Write everything, on one process."""
        if self._path is None or not self._accelerator.is_main_process:
            return
        scaler = self._accelerator.scaler
        state = {
            "learned": self._model.learned(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "losses": self.losses,
            "validations": [asdict(row) for row in self.validations],
            "best": self.best,
            "best_at": self._best_at,
        }
        save_state(self._path, state)


def _adapter(
    model: FewShotModel, checkpoint: Checkpoint, examples: Examples, settings: FewShotSettings
) -> Adapter:
    fitted = {"pair": (1.0, 0.0), "matrix": (1.0, 0.0)}  # a and b
    for mode in settings.modes:
        score = combine(settings.score, model.match.w, *score_all(model, examples, mode))
        fitted[mode] = fit_match_probability(score, examples.labels)
    prompts = model.scoring.prompts
    assert prompts is not None
    with torch.no_grad():
        heads = model.heads().cpu().split(model.scoring.heads)
    return Adapter(
        prompt_config=prompts.config,
        prompt_state={name: value.cpu() for name, value in prompts.state_dict().items()},
        head_mode=settings.head_mode,
        head_weights=heads,
        score=settings.score,
        denoising_weight=model.match.w,
        a=fitted["pair"][0],
        b=fitted["pair"][1],
        mode=settings.mode,
        matrix_a=fitted["matrix"][0],
        matrix_b=fitted["matrix"][1],
        levels=settings.levels,
        resize=settings.resize,
        base=checkpoint.weight_hashes,
    )
