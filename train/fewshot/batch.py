"""A training step's pairs: the right one of each question and wrong ones, hard and random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.settings import FewShotSettings


@dataclass(frozen=True)
class PairBatch:
    """Pairs of some questions, the right one first.

    Attributes:
        images: (questions, 1 + negatives), int64.
        texts: the same shape.
        level: of all pairs of a question, int64 (questions,).
    """

    images: Tensor
    texts: Tensor
    level: Tensor

    def inputs(self, examples: Examples, device: torch.device) -> tuple[Tensor, ...]:
        """What `FewShotModel` takes, one row a pair."""
        images, texts = self.images.flatten(), self.texts.flatten()
        return (
            examples.latents[images].to(device),
            self.level.repeat_interleave(self.images.shape[1]).to(device),
            examples.text_states[texts].to(device),
            examples.token_masks[texts].to(device),
            examples.empty.to(device),
        )

    def loss(self, logits: Tensor, kind: Literal["bce", "softmax"]) -> Tensor:
        """Eq. 6, or the cross-entropy of the right pair against its question's wrong ones."""
        by_question = logits.float().view(self.images.shape)
        if kind == "softmax":
            return -by_question.log_softmax(dim=1)[:, 0].mean()
        labels = torch.zeros_like(by_question)
        labels[:, 0] = 1
        return F.binary_cross_entropy_with_logits(by_question, labels)


def sample_batch(
    examples: Examples, settings: FewShotSettings, rng: np.random.Generator
) -> PairBatch:
    """Draw questions, wrong pairs and levels; a function of the generator's state alone."""
    matches = examples.matches
    images, texts = [], []
    for q in rng.integers(len(examples), size=settings.questions):
        first, last = examples.starts[q], examples.starts[q + 1]
        right = int(examples.right[q])
        own = [pair for pair in range(int(first), int(last)) if pair != right]
        rng.shuffle(own)
        x, y = int(examples.images[right]), int(examples.texts[right])
        chosen = [(x, y)]
        while len(chosen) < 1 + settings.negatives:
            if len(examples) == 1 or rng.random() < settings.hard:
                pair = own[len(chosen) % len(own)]
                chosen.append((int(examples.images[pair]), int(examples.texts[pair])))
                continue
            other = int(examples.right[rng.integers(len(examples))])
            if rng.random() < 0.5:
                stranger = (x, int(examples.texts[other]))
            else:
                stranger = (int(examples.images[other]), y)
            # A question drawn against itself, or a text that is right of several images.
            if stranger not in matches:
                chosen.append(stranger)
            else:
                chosen.append((int(examples.images[own[0]]), int(examples.texts[own[0]])))
        images.append([image for image, _ in chosen])
        texts.append([text for _, text in chosen])
    level = rng.integers(len(settings.levels), size=settings.questions)
    return PairBatch(torch.tensor(images), torch.tensor(texts), torch.from_numpy(level))
