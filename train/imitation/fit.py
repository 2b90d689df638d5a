"""Learning token heads and relations from pair mode: which text it prefers, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dsd_trt.train.fewshot.fit import DivergedError
from dsd_trt.train.imitation.two_modes import Matched, TwoModes
from dsd_trt.train.scoring.token_heads import TokenHeads, weigh

TEXTS = 48
"""Texts that each image is scored with, at most."""

STEPS = 400
"""Steps of the fit, of `_IMAGES` images each; on one core they take seconds."""

_IMAGES = 40
_SHARPNESS = 0.7  # temperature of the targets, in standard deviations of an image's scores
_RATE, _TOKEN_RATE, _GATE_RATE = 0.056, 0.011, 0.004
_DECAY = 1.0  # weight decay of what depends on the token: thousands of numbers
_BASE = 10.0  # sum of the head weights before they are scaled


@dataclass(frozen=True)
class Lessons:
    """What token heads and relations learn from.

    Attributes:
        matched: what matrix mode sees of the images, each with its texts.
        texts: place of each image's texts among the encoded ones, (images, texts).
        scores: pair mode's scores at its first noise level, FP32 (images, texts).
    """

    matched: Matched
    texts: NDArray[np.intp]
    scores: Tensor

    def tokens(self, modes: TwoModes) -> tuple[Tensor, Tensor, Tensor]:
        """States and mask of the distinct texts, and the place of each image's texts among them.

        Args:
            modes: model that the lessons are of.

        Returns:
            FP32 (distinct, tokens, D) and (distinct, tokens), and integers (images, texts).
        """
        distinct, places = np.unique(self.texts, return_inverse=True)
        words, mask = modes.words(distinct)
        return words.float(), mask, torch.from_numpy(places.reshape(self.texts.shape))

    @cached_property
    def unit(self) -> float:
        """Temperature of the targets: what of a difference between two scores counts."""
        return _SHARPNESS * float((self.scores - self.scores.mean(dim=1, keepdim=True)).std())

    def losses(self, images: NDArray[np.intp], estimates: Tensor) -> Tensor:
        """Cross-entropy of pair mode's preferences among the texts of each of some images.

        Args:
            images: numbers of the images.
            estimates: estimates of their scores, (images, texts).

        Returns:
            FP32 (images,).
        """
        target = (self.scores[images] / self.unit).softmax(dim=1)
        return -(target * (estimates / self.unit).log_softmax(dim=1)).sum(dim=1)


def gather(
    modes: TwoModes,
    images: NDArray[np.intp],
    texts: NDArray[np.intp],
    own: Sequence[Sequence[int]],
    rng: np.random.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Lessons:
    """Score each image with some texts in both modes.

    Every second image has its own texts among them, those that its questions reject included: they
    differ in little, such as a relation. The others are lists without a clear winner, which a
    search meets too.

    Args:
        modes: model to score with.
        images: places of the images.
        texts: places of the texts that are drawn from.
        own: places of each image's own texts, the most important first.
        rng: random generator of the drawn texts.
        progress: callback `(done, total)`, in images.
    """
    count = min(TEXTS, len(texts))
    matched, chosen, scores = [], [], []
    for number, image in enumerate(images.tolist()):
        of_image = rng.choice(texts, count, replace=False)
        if number % 2:
            first = np.array(own[number][: count // 2], np.intp)
            of_image = np.concatenate([first, of_image[~np.isin(of_image, first)]])[:count]
        matched.append(modes.match(image, of_image))
        scores.append(modes.score(np.full(count, image), of_image, 0))
        chosen.append(of_image)
        progress(number + 1, len(images))
    every = torch.from_numpy(np.stack(scores))
    return Lessons(Matched.stack(matched), np.stack(chosen), every)


def fit_token_heads(
    modes: TwoModes,
    lessons: Lessons,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenHeads:
    """Learn token heads by the cross-entropy of pair mode's preferences among an image's texts.

    The target is a softmax of pair mode's scores: its best texts count, how bad the bad ones are
    does not. The scale of the estimates is learned too, the offset is that of least squares.

    Args:
        modes: model that the lessons are of.
        lessons: scores of images with texts in both modes.
        seed: random seed of the batches.
        progress: callback `(done, total)`, in steps.

    Raises:
        DivergedError: a score is not finite, or all are equal.
    """
    scores, matched = lessons.scores, lessons.matched
    seen = (scores, matched.pooled, matched.centres)
    if not all(bool(it.isfinite().all()) for it in seen):
        raise DivergedError(
            "nothing can be learned from scores that are not finite: score some of the images and "
            "texts with dsd-trt eval, which names those that have none, and leave them out"
        )
    if lessons.unit == 0:
        raise DivergedError(
            "nothing can be learned: pair mode scores all texts of an image alike. Is the adapter, "
            "or the model, the right one?"
        )
    words, mask, of_lesson = lessons.tokens(modes)
    learned = _Normalised(modes.scoring.head_weights.cpu(), words, mask)
    slow = [learned.of_token, learned.gate]
    optimizer = torch.optim.AdamW(
        [
            {"params": [learned.base], "lr": _RATE, "weight_decay": 0.0},
            {"params": [learned.scale], "lr": _RATE / 3, "weight_decay": 0.0},
            {"params": slow[:1], "lr": _TOKEN_RATE, "weight_decay": _DECAY},
            {"params": slow[1:], "lr": _GATE_RATE, "weight_decay": _DECAY},
        ]
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    rng = np.random.default_rng(seed)
    for step in range(STEPS):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / STEPS)
        batch = rng.permutation(len(scores))[:_IMAGES]
        of_batch = of_lesson[batch]
        weights = weigh(words[of_batch], mask[of_batch], *learned.parts())
        estimates = (matched.pooled[batch].float() * weights).sum(dim=(2, 3))
        loss = lessons.losses(batch, estimates).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress(step + 1, STEPS)
    heads = learned.heads()
    with torch.no_grad():
        weights = heads.weights(words, mask)
        rows = zip(matched.pooled, of_lesson, scores, strict=True)
        missed = [(y - (s.float() * weights[at]).sum(dim=(1, 2))).mean() for s, at, y in rows]
        heads.offset.fill_(float(torch.stack(missed).mean()))
    return heads


def mean_and_spread(words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the states of tokens that count, (D,) each; none is 0.

    Args:
        words: states of texts, (texts, tokens, D).
        mask: 1 where a token counts, else 0, (texts, tokens).
    """
    counted = words[mask > 0]  # (tokens of all texts, D)
    spread = counted.std(dim=0)
    return counted.mean(dim=0), spread.clamp(min=1e-3 * float(spread.mean()) + 1e-12)


class _Normalised(nn.Module):
    """Token heads as they are learned: of states with mean 0 and standard deviation 1.

    Learning rates then fit any text encoder and any number of heads.
    """

    def __init__(self, head_weights: Tensor, words: Tensor, mask: Tensor) -> None:
        super().__init__()
        self._mean, self._spread = mean_and_spread(words, mask)
        self._initial = _BASE * head_weights
        self._each = _BASE / len(head_weights)
        self.base = nn.Parameter(torch.zeros(len(head_weights)))
        self.of_token = nn.Parameter(torch.zeros(len(head_weights), words.shape[2]))
        self.gate = nn.Parameter(torch.zeros(words.shape[2]))
        self.scale = nn.Parameter(torch.tensor(-1.4))  # a quarter, as its logarithm

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """a, A and v of the states as they are; gradients reach the parameters."""
        scale = self.scale.exp()
        of_token = scale * self._each * self.of_token / self._spread
        base = scale * (self._initial + self._each * self.base) - of_token @ self._mean
        return base, of_token, self.gate / self._spread

    def heads(self) -> TokenHeads:
        """Token heads with these parts."""
        made = TokenHeads(*self.of_token.shape)
        with torch.no_grad():
            for name, value in zip(("base", "of_token", "gate"), self.parts(), strict=True):
                made.get_parameter(name).copy_(value)
        return made.requires_grad_(False)
