"""Learning relations from pair mode, on top of token heads, and only if they help."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dsd_trt.train.imitation.fit import Lessons, mean_and_spread
from dsd_trt.train.imitation.two_modes import TwoModes
from dsd_trt.train.scoring.relations import FEATURES, Relations, relate
from dsd_trt.train.scoring.token_heads import TokenHeads

STEPS = 800
"""Steps of the fit, of `_IMAGES` images each."""

_IMAGES = 40
_HELD_OUT = 0.1  # share of the images on which relations have to help
_RATE, _DECAY, _WARMUP = 1e-2, 1e-2, 0.1
_ROLES, _WORDS = 0.6, 0.2  # spread of what a state chooses and adds before the first step


@dataclass(frozen=True)
class Related:
    """The result of `fit_relations`.

    Attributes:
        relations: the relations; None if they do not lower the loss on the images held out, by
            more than two standard errors of what they change.
        loss: cross-entropy of pair mode's preferences on these images, with relations.
        without: the same without them.
    """

    relations: Relations | None
    loss: float
    without: float

    def line(self) -> str:
        """What became of the relations, for the user."""
        losses = f"loss on images held out {self.loss:.3f}, without them {self.without:.3f}"
        return f"relations: {'kept' if self.relations else 'left out'}, {losses}"


def fit_relations(
    modes: TwoModes,
    lessons: Lessons,
    heads: TokenHeads,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Related:
    """Learn relations by the loss of token heads, whose estimates they are added to.

    Args:
        modes: model that the lessons are of.
        lessons: scores of images with texts in both modes, all finite.
        heads: token heads learned from them, which stay as they are.
        seed: random seed of the images held out, of the first parameters and of the batches.
        progress: callback `(done, total)`, in steps.
    """
    words, mask, of_lesson = lessons.tokens(modes)
    estimates = torch.stack(
        [
            torch.from_numpy(modes.estimates(heads, lessons.matched[i : i + 1], texts)[0])
            for i, texts in enumerate(lessons.texts)
        ]
    )
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(estimates))
    held_out, learning = np.split(order, [max(round(_HELD_OUT * len(order)), 2)])
    learned = _Normalised(words, mask, lessons.matched.related()[0], lessons.unit, seed)
    optimizer = torch.optim.AdamW(learned.parameters(), _RATE, weight_decay=_DECAY)
    for step in range(STEPS):
        warm = min((step + 1) / (_WARMUP * STEPS), (1 - step / STEPS) / (1 - _WARMUP))
        for group in optimizer.param_groups:
            group["lr"] = _RATE * warm
        batch = rng.permutation(learning)[:_IMAGES]
        at = of_lesson[batch]
        related = relate(words[at], mask[at], *lessons.matched[batch].related(), *learned.parts())
        loss = lessons.losses(batch, estimates[batch] + related.sum(dim=2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress(step + 1, STEPS)
    relations = learned.relations()
    with torch.no_grad():
        rows = []
        for i, at in enumerate(of_lesson):
            seen = lessons.matched[i : i + 1].related()
            rows.append(relations(words[at][None], mask[at][None], *seen)[0].sum(dim=1))
        added = torch.stack(rows)
        relations.base[-1] -= added.mean()  # the offset of the token heads stays that of all
        with_them = lessons.losses(held_out, (estimates + added)[held_out])
        without = lessons.losses(held_out, estimates[held_out])
    gain = without - with_them
    helpful = float(gain.mean()) > 2 * float(gain.std()) / math.sqrt(len(gain))
    return Related(relations if helpful else None, float(with_them.mean()), float(without.mean()))


class _Normalised(nn.Module):
    """Relations as they are learned: of states with mean 0 and standard deviation 1, in `unit`.

    Learning rates then fit any text encoder, and any spread of pair mode's scores.
    """

    def __init__(self, words: Tensor, mask: Tensor, pooled: Tensor, unit: float, seed: int) -> None:
        super().__init__()
        self._mean, self._spread = mean_and_spread(words, mask)
        self._gain = torch.full((FEATURES, 1), unit)
        self._gain[6:8] /= max(float(pooled.std()), 1e-6)  # S of both tokens
        width = words.shape[2]
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(3 + FEATURES, width, generator=generator) / math.sqrt(width)
        self.roles = nn.Parameter(_ROLES * drawn[:3])
        self.of_word = nn.Parameter(_WORDS * drawn[3:])
        self.heads = nn.Parameter(torch.zeros(2, pooled.shape[1]))
        self.base = nn.Parameter(torch.zeros(FEATURES))

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Parameters for the states as they are; gradients reach the learned ones."""
        of_word = self._gain * self.of_word / self._spread
        base = self._gain[:, 0] * self.base - of_word @ self._mean
        return self.roles / self._spread, self.heads, of_word, base

    def relations(self) -> Relations:
        """Relations with these parts."""
        made = Relations(self.heads.shape[1], self.roles.shape[1])
        with torch.no_grad():
            names = ("roles", "heads", "of_word", "base")
            for name, value in zip(names, self.parts(), strict=True):
                made.get_parameter(name).copy_(value)
        return made.requires_grad_(False)
