"""Training with AdamW that ends with the moving average of the weights, and can be resumed."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dsd_trt.errors import InputError
from dsd_trt.train.run.state import require_like, restore_optimizer, resumed, save_state
from dsd_trt.train.shapes.vae import cosine
from dsd_trt.train.shapes.workers import Worker

_WARM_UP = 200  # steps


class Schedule(Protocol):
    """Hyperparameters that such a training reads; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        ...

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, after a linear warm-up; cosine decay to zero."""
        ...

    @property
    def ema(self) -> float:
        """Decay of the average of the weights."""
        ...


class AveragedTraining:
    """The state of a training: weights, optimiser, and the average of the weights.

    Args:
        model: model to train in place, on its device.
        settings: hyperparameters of the training.
        path: path of the training state; if the file exists, training resumes from it.
        worker: this process among all workers; only worker 0 saves.

    Raises:
        InputError: the training state is of a run with other settings.
        ModelError: the training state is damaged, or is another model's.

    Attributes:
        start: number of steps that were done before.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Schedule,
        path: Path,
        worker: Worker,
    ) -> None:
        self._model, self._settings, self._path, self._worker = model, settings, path, worker
        self._parameters = dict(model.named_parameters())
        self._average = {name: it.detach().clone() for name, it in self._parameters.items()}
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=settings.learning_rate,
            weight_decay=0.01,
            betas=(0.9, 0.99),
        )
        self.start, self._before = 0, 0.0
        with resumed(path) as state:
            if state is not None:
                if state.get("settings", asdict(settings)) != asdict(settings):
                    raise InputError(
                        f"{path} is of a run with other settings: choose another folder, or "
                        "delete it"
                    )
                model.load_state_dict(state["model"])
                restore_optimizer(self._optimizer, state["optimizer"])
                require_like(state["average"], self._parameters)
                self._average = {
                    name: state["average"][name].to(it.device)
                    for name, it in self._parameters.items()
                }
                self.start, self._before = int(state["step"]), float(state.get("seconds", 0))
        self._began = time.monotonic()
        model.train()

    @property
    def seconds(self) -> float:
        """Training time, including the time before a restart."""
        return self._before + time.monotonic() - self._began

    def descend(self, step: int, loss: Tensor) -> None:
        """Change the weights by one step, along the mean of all workers' gradients.

        Args:
            step: index of the step, from 0.
            loss: loss of this worker's part of the batch.
        """
        rate = self._settings.learning_rate * cosine(step, self._settings.steps, warm_up=_WARM_UP)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss.backward()
        self._worker.average_gradients(self._parameters.values())
        nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        self._optimizer.step()

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Add the weights to their average, which follows them closely in the first steps."""
        decay = min(self._settings.ema, (1 + step) / (10 + step))
        for name, value in self._parameters.items():
            self._average[name].lerp_(value, 1 - decay)

    def save(self, step: int, every: int) -> None:
        """Save the state at regular intervals, and after the last step.

        Args:
            step: number of completed steps.
            every: number of steps between saves.
        """
        if self._worker.rank > 0 or (step % every and step != self._settings.steps):
            return
        state = {
            "settings": asdict(self._settings),
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average,
            "step": step,
            "seconds": self.seconds,
        }
        save_state(self._path, state)

    def finish(self) -> None:
        """Give the model the averaged weights."""
        self._model.load_state_dict(self._average, strict=False)
        self._model.eval()
