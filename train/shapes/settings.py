"""Hyperparameters of one training stage of the demonstration's U-Net and text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DiffusionSettings:
    """Hyperparameters of one training stage.

    Attributes:
        steps: number of optimiser steps of the stage.
        twins: twins per step over all workers; a twin is two images and four pairs.
        learning_rate: peak learning rate, after 200 steps of warm-up; cosine decay to zero.
        kept: probability that drawn twins are kept, by their edit; 1 for an edit not listed. For
            an edited subject or object it is multiplied by that of the differing attribute:
            "colour", "shape" or "both".
        telling: weight of the ranking loss over only the words that distinguish two captions.
        naming: weight of the loss that names the things in an image, see `Naming`.
        places: share of twins whose captions give the side of one common thing, or the sides of
            both things, where that distinguishes them. These lessons lead from a lone thing's
            side to a relation.
        strangers: share of twins whose second image is replaced by another twin's, so that the
            ranking loss also has easy negatives.
        unconditional: share of twins trained with the unconditional text, as classifier-free
            guidance requires; naming learns most from them.
        noise: exponent of the timesteps 1000 u^noise, with u uniform in [0, 1]; above 1 low noise
            is more frequent.
        ema: decay of the exponential moving average of the weights, which is saved.
        seed: random seed of batches and noise.
    """

    steps: int
    twins: int = 24
    learning_rate: float = 1e-3
    kept: Mapping[str, float] = field(
        default_factory=lambda: {"predicate": 0.4, "side": 0.4, "other": 0.5}
    )
    telling: float = 0.0
    naming: float = 0.0
    places: float = 0.0
    strangers: float = 0.0
    unconditional: float = 0.05
    noise: float = 1.0
    ema: float = 0.999
    seed: int = 0
