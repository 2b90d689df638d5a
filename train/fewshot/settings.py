"""Hyperparameters of few-shot training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dsd_trt.bundle.manifest import Resize
from dsd_trt.bundle.method import HeadMode, Mode, ScoreKind, TrainedFor
from dsd_trt.errors import InputError
from dsd_trt.train.scoring.adapter_file import AdapterFile
from dsd_trt.train.scoring.choices import DEFAULT_LEVELS, Loss, require_levels, require_matrix

RECIPE: Mapping[str, Any] = {
    "steps": 0,
    "hard": 1.0,
    "loss": "softmax+bce",
    "learning_rate": 0.0,
    "warmup": 0.1,
    "beta2": 0.95,
    "conditional": False,
    "update_rank": 2,
    "copies": 8,
    "refit": True,
}
"""What `dsd-trt train` changes in the paper's form, to learn more from few examples."""

_FEW, _STEPS, _RATE = 40, 200, 8e-3  # questions, with steps and learning rate for at most as many
_MORE, _MOST = 12, 1500  # steps for each further question, and for any number of them


@dataclass(frozen=True)
class FewShotSettings:
    """Hyperparameters of few-shot training; the defaults are the paper's form, see `RECIPE`.

    Attributes:
        steps: number of optimiser steps; 0 until `sized` chooses it.
        questions: questions per batch and process; each contributes its positive pair and
            `negatives` negative pairs, all at one random noise level.
        negatives: negative pairs per positive pair.
        hard: share of negatives that are the question's own candidates, in [0, 1]; the others
            take a random image or text of another question, unless they may match.
        loss: training loss: "bce", binary cross-entropy over all pairs (Eq. 6), "softmax",
            cross-entropy of the positive pair against its negatives, or "softmax+bce", the latter
            with 0.1 of the former. Softmax alone orders the texts of one image: nothing makes its
            scores comparable between images, which a filter needs.
        learning_rate: learning rate of the first step, from which it falls linearly to zero; 0
            until `sized` chooses it.
        warmup: share of the steps, in [0, 1), in which the learning rate rises to that line.
        beta2: decay rate of AdamW's mean squared gradients. 0.999 remembers all of a short run: in
            some, the loss then stays high.
        rank: rank of the static prompts; None trains full matrices.
        conditional: whether the image-conditional part of the prompts, u pi(x)^T in Eq. 5, is
            trained. It can tell every training image from the others, and so learns them by heart
            if they are few.
        update_rank: rank of the updates of the U-Net's own matrices, which export merges into
            them; 0 trains the paper's prompts alone, see `LowRankUpdates`.
        copies: augmented copies of each image that training draws from, see `augment`; 0 trains
            on the images as they are.
        hidden: width of the mapping network's hidden layer.
        head_mode: source of the head weights, see `HeadWeights` of the bundle.
        mode: mode the adapter is trained for, see `dsd_trt.train.scoring.matrix`; "both" takes
            the mean of the two losses.
        score: score that is trained: attention, denoising term, or their weighted sum.
        levels: noise levels s, each in (0, 1).
        resize: method by which images are made square, see `Resize`.
        seed: random seed of initial parameters and batches.
        noise_seed: random seed of the score's noise, the same as at export.
        accumulate: batches whose gradients are accumulated per optimiser step.
        mixed_precision: precision of autocast: "no", "fp16" or "bf16"; logits and pooling stay
            FP32.
        recompute: whether activations are recomputed in the backward pass (gradient
            checkpointing), which saves memory and costs time.
        validate_every: number of steps between validations.
        patience: validations without improvement after which training stops.
        refit: whether a second training learns from all questions, those held out included, unless
            the first was worse than its start, or an earlier step of it clearly better than the
            last.

    Raises:
        InputError: matrix mode is combined with a score or head weights it does not have, or a
            noise level lies outside (0, 1).
    """

    steps: int = 600
    questions: int = 8
    negatives: int = 3
    hard: float = 0.5
    loss: Loss = "bce"
    learning_rate: float = 2e-3
    warmup: float = 0.0
    beta2: float = 0.999
    rank: int | None = 4
    conditional: bool = True
    update_rank: int = 0
    copies: int = 0
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
    refit: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other, before anything is read or encoded."""
        if self.mode != "pair":
            require_matrix(self.score, self.head_mode, "train with --mode pair")
        try:
            require_levels(self.levels)
        except ValueError as error:
            raise InputError(str(error)) from None

    def sized(self, questions: int) -> FewShotSettings:
        """These settings for a number of training questions: steps and learning rate if not given.

        Beyond 40 questions, steps grow by 12 for each up to 1,500, and the learning rate falls with
        their square root: at that of 40 questions, 100 are learned worse, however many the steps.
        """
        steps = min(_STEPS + _MORE * max(questions - _FEW, 0), _MOST)
        rate = _RATE * math.sqrt(_STEPS / steps)
        return replace(self, steps=self.steps or steps, learning_rate=self.learning_rate or rate)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        falling = 1 - step / self.steps
        rising = (step + 1) / (self.warmup * self.steps) if self.warmup else 1.0
        return self.learning_rate * min(falling, rising)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that are trained, "both" resolved into its two."""
        return ("pair", "matrix") if self.mode == "both" else (self.mode,)


def continued(
    start: AdapterFile | None, given: Mapping[str, Any], recipe: Mapping[str, Any] = RECIPE
) -> FewShotSettings:
    """Settings as given, else as the adapter has them that training starts from, else a recipe's.

    Args:
        start: adapter that training starts from; None for the base model.
        given: settings by their names, without those that the user left open.
        recipe: settings that take the place of the defaults; none are the paper's form.

    Raises:
        InputError: the adapter cannot be continued with these settings; or as for
            `FewShotSettings`.
    """
    if start is None:
        return FewShotSettings(**dict(recipe) | dict(given))
    config = start.config
    if start.merged and config.prompts is None:
        raise InputError(
            f"training cannot start from {start.folder}, which was imported and has no prompts: "
            "--from none"
        )
    own: dict[str, Any] = {
        "score": config.score,
        "head_mode": config.head_mode,
        "mode": config.mode or "pair",
        "resize": config.resize or FewShotSettings.resize,
    }
    if config.levels:
        own["levels"] = config.levels
    ranks = {
        it.shape[0]
        for name, it in start.headers.items()
        if name.startswith("merged.") and name.endswith(".down")
    }
    if ranks:
        own["update_rank"] = max(ranks)
        if given.get("update_rank", max(ranks)) != max(ranks):
            raise InputError(
                f"--update-rank {given['update_rank']}: training starts from {start.folder}, whose "
                f"updates have rank {max(ranks)}. Leave out --update-rank, or train from scratch: "
                "--from none"
            )
    if config.prompts is not None:
        own |= {"rank": config.prompts.rank, "hidden": config.prompts.hidden}
        for name in ("rank", "hidden"):
            if given.get(name, own[name]) != own[name]:
                said, has = ("full" if it is None else it for it in (given[name], own[name]))
                raise InputError(
                    f"--{name} {said}: training starts from {start.folder}, whose prompts have "
                    f"{name} {has}. Leave out --{name}, or train from scratch: --from none"
                )
    heads = given.get("head_mode", config.head_mode)
    if heads != config.head_mode and (heads != "learned" or config.head_mode == "dynamic"):
        raise InputError(
            f"--head-weights {heads}: training starts from {start.folder}, whose head weights are "
            f"{config.head_mode}. Leave out --head-weights, or train from scratch: --from none"
        )
    if given.get("mode", own["mode"]) != "pair" and "score" not in given:
        require_matrix(config.score, heads, "train with --mode pair, or --from none")
    return FewShotSettings(**dict(recipe) | own | dict(given))
