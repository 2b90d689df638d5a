"""How the embedded model's diffusion is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DiffusionSettings:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps in total.
        twins: twins a step, over all workers; a twin is two pictures and four pairs.
        learning_rate: peak; rises over 200 steps, falls to zero along a cosine.
        kept: share of twins that is kept when drawn, by what was edited; 1 where it is not said.
            Of an edited subject or object, times the share of what of it differs: "colour",
            "shape", or "both".
        telling: weight of the loss that ranks by the words alone that tell two captions apart.
        naming: weight of the loss that names what the picture shows, see `Naming`.
        places: share of twins that are told apart, where they can be, by the side on which a thing
            of both stands, or by the sides of both things: lessons between a lone thing's side and
            a relation of two.
        strangers: share of twins whose second picture is replaced by another twin's, so that the
            ranking loss also meets captions that are wrong altogether.
        silent: share of twins whose text is left out: what classifier-free guidance needs, and
            what leaves most to naming.
        noise: timesteps are 1000 u^noise, u even over [0, 1]; above 1 there is more of what is
            little noised.
        ema: decay of the averaged weights, which are what is kept.
        seed: of weights, batches and noise.
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
    silent: float = 0.05
    noise: float = 1.0
    ema: float = 0.999
    seed: int = 0
