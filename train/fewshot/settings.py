"""Hyperparameters of few-shot training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dsd_trt.bundle.manifest import HeadMode, Mode, Resize, ScoreKind, TrainedFor
from dsd_trt.errors import InputError
from dsd_trt.train.scoring.adapter_file import AdapterFile
from dsd_trt.train.scoring.choices import DEFAULT_LEVELS, require_levels, require_matrix

Loss = Literal["bce", "softmax"]


@dataclass(frozen=True)
class FewShotSettings:
    """Hyperparameters of few-shot training; the defaults suit a few hundred questions.

    Attributes:
        steps: number of optimiser steps.
        questions: questions per batch and process; each contributes its positive pair and
            `negatives` negative pairs, all at one random noise level.
        negatives: negative pairs per positive pair.
        hard: share of negatives that are the question's own candidates, in [0, 1]; the others
            take a random image or text of another question.
        loss: training loss: "bce", binary cross-entropy over all pairs (Eq. 6), or "softmax",
            cross-entropy of the positive pair against its negatives.
        learning_rate: initial learning rate, decayed linearly to zero.
        rank: rank of the static prompts; None trains full matrices.
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

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other, before anything is read or encoded."""
        if self.mode != "pair":
            require_matrix(self.score, self.head_mode, "train with --mode pair")
        try:
            require_levels(self.levels)
        except ValueError as error:
            raise InputError(str(error)) from None

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that are trained, "both" resolved into its two."""
        return ("pair", "matrix") if self.mode == "both" else (self.mode,)


def continued(start: AdapterFile | None, given: Mapping[str, Any]) -> FewShotSettings:
    """Settings as given, else as the adapter has them that training starts from, else the defaults.

    Args:
        start: adapter that training starts from; None for the base model.
        given: settings by their names, without those that the user left open.

    Raises:
        InputError: the adapter cannot be continued with these settings; or as for
            `FewShotSettings`.
    """
    if start is None:
        return FewShotSettings(**given)
    config = start.config
    if start.merged:
        raise InputError(
            f"training cannot start from {start.folder}, which changes weights of the U-Net "
            "itself: --from none"
        )
    own: dict[str, Any] = {
        "score": config.score,
        "head_mode": config.head_mode,
        "mode": config.mode or "pair",
        "resize": config.resize or FewShotSettings.resize,
    }
    if config.levels:
        own["levels"] = config.levels
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
    return FewShotSettings(**own | dict(given))
