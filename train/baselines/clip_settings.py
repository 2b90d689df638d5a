"""Hyperparameters of the tiny CLIP; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dsd_trt.errors import InputError, counted

PLAN_NAME, STATE_NAME = "plan.json", "tiny-clip.ckpt"
"""Files of a run's folder: its settings, and the state of its training."""

STATES = (STATE_NAME, "model")
"""The state of a run, and its result: without either of them a folder holds no run."""


@dataclass(frozen=True)
class ClipSettings:
    """Hyperparameters of the tiny CLIP; with `SMOKE` a run takes seconds and learns nothing.

    The default is 384,000 images, as many as in the demonstration's first two stages.

    Attributes:
        steps: number of optimiser steps.
        twins: twins per step over all workers; a twin is two images with a caption each.
        pool: number of distinct twins to draw from, the first ones of the demonstration.
        learning_rate: peak learning rate, after 200 steps of warm-up; cosine decay to zero.
        ema: decay of the exponential moving average of the weights, which is saved.
        width: hidden width of the vision tower.
        layers: number of transformer layers of the vision tower.
        seed: random seed of weights and batches.
    """

    steps: int = 4000
    twins: int = 48
    pool: int = 50_000
    learning_rate: float = 1e-3
    ema: float = 0.999
    width: int = 192
    layers: int = 8
    seed: int = 0

    def require_even(self, processes: int) -> None:
        """Refuse a number of workers that the twins of a step cannot be divided among.

        Raises:
            InputError: a worker would have more twins than another.
        """
        if self.twins % processes:
            raise InputError(
                f"{counted(self.twins, 'twin')} per step cannot be divided evenly among "
                f"{counted(processes, 'worker')}: choose another --workers"
            )


SMOKE = ClipSettings(steps=4, twins=4, pool=12, width=32, layers=1)
