"""How an adapter is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsd_trt.bundle.manifest import HeadMode, Mode, Resize, ScoreKind, TrainedFor
from dsd_trt.train.scoring.noise import DEFAULT_LEVELS


@dataclass(frozen=True)
class FewShotSettings:
    """Sizes and lengths.

    Attributes:
        steps: optimiser steps.
        questions: questions a step and process; each gives its right pair and `negatives` wrong
            ones, all at one random noise level.
        negatives: wrong pairs a question.
        hard: share of them that are the question's own wrong candidates; the others take a
            random image or text of another question.
        loss: "bce", binary cross-entropy over all pairs (Eq. 6), or "softmax", cross-entropy of
            the right pair against the wrong ones.
        learning_rate: peak, falling linearly to zero.
        rank: of the static prompts; None is full matrices.
        hidden: width of the mapping network.
        head_mode: where head weights come from, see `HeadWeights` of the bundle.
        mode: which mode it is trained for, see `dsd_trt.train.scoring.matrix`; "both" takes the
            mean of their losses.
        score: what is trained: attention, denoising term, or both.
        levels: noise levels s.
        resize: how images become the model's squares, see `Resize`.
        seed: of initial values and batches.
        noise_seed: of the score's noise; export uses the same.
        accumulate: batches whose gradients are summed up for one step.
        mixed_precision: "no", "fp16" or "bf16"; logits and pooling stay FP32.
        recompute: forget activations and compute them again for the gradient, to save memory.
        validate_every: steps between validations.
        patience: validations without a better one after which training stops.
    """

    steps: int = 600
    questions: int = 8
    negatives: int = 3
    hard: float = 0.5
    loss: Literal["bce", "softmax"] = "bce"
    learning_rate: float = 2e-3
    rank: int | None = 4
    hidden: int = 32
    head_mode: HeadMode = "learned"
    mode: TrainedFor = "pair"
    score: ScoreKind = "attention"
    levels: tuple[float, ...] = DEFAULT_LEVELS
    resize: Resize = "bicubic-stretch"
    seed: int = 0
    noise_seed: int = 0
    accumulate: int = 1
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    recompute: bool = False
    validate_every: int = 100
    patience: int = 5

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes it is trained for, one by one."""
        return ("pair", "matrix") if self.mode == "both" else (self.mode,)
