"""The pairs of a training step: one positive per question, with hard and random negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.scoring.choices import Loss

_BCE = 0.1  # weight of Eq. 6 beside softmax cross-entropy


@dataclass(frozen=True)
class PairBatch:
    """Pairs of a batch of questions; the positive pair is at index 0 of the second axis.

    Attributes:
        images: index of each pair's image in the examples, int64 (questions, 1 + negatives).
        texts: index of each pair's text in the examples, int64 (questions, 1 + negatives).
        level: index into the noise levels, shared by a question's pairs, int64 (questions,).
    """

    images: Tensor
    texts: Tensor
    level: Tensor

    def inputs(self, examples: Examples, device: torch.device) -> tuple[Tensor, ...]:
        """Arguments of `FewShotModel.forward`, with one row per pair."""
        images, texts = self.images.flatten(), self.texts.flatten()
        return (
            examples.latents[images].to(device),
            self.level.repeat_interleave(self.images.shape[1]).to(device),
            examples.text_states[texts].to(device),
            examples.token_masks[texts].to(device),
            examples.unconditional.to(device),
        )

    def loss(self, logits: Tensor, kind: Loss) -> Tensor:
        """Training loss: Eq. 6, softmax cross-entropy of the positive, or a sum of the two.

        Args:
            logits: logit of each pair's match, (questions * (1 + negatives),).
            kind: "bce" for binary cross-entropy (Eq. 6), "softmax" for softmax cross-entropy of
                the positive among its negatives, "softmax+bce" for this and 0.1 of Eq. 6.
        """
        by_question = logits.float().view(self.images.shape)  # (questions, 1 + negatives)
        softmax = -by_question.log_softmax(dim=1)[:, 0].mean()
        if kind == "softmax":
            return softmax
        labels = torch.zeros_like(by_question)
        labels[:, 0] = 1
        bce = F.binary_cross_entropy_with_logits(by_question, labels)
        return bce if kind == "bce" else softmax + _BCE * bce


def sample_batch(
    examples: Examples, settings: FewShotSettings, rng: np.random.Generator
) -> PairBatch:
    """Draw questions, negative pairs and noise levels.

    Args:
        examples: encoded questions to draw from.
        settings: number of questions and negatives per step, and the share of hard negatives.
        rng: random generator, whose state alone determines the batch.
    """
    images, texts = [], []
    count = examples.image_count
    for q in rng.integers(len(examples), size=settings.questions):
        first, last = examples.starts[q], examples.starts[q + 1]
        right = int(examples.right[q])
        own = [pair for pair in range(int(first), int(last)) if pair != right]
        rng.shuffle(own)
        x, y = int(examples.images[right]), int(examples.texts[right])
        chosen = [(x, y)]
        while len(chosen) < 1 + settings.negatives:
            # Own negatives alone, but each once where there are fewer than asked for.
            spent = settings.hard == 1 and len(chosen) > len(own)
            if len(examples) == 1 or (rng.random() < settings.hard and not spent):
                pair = own[len(chosen) % len(own)]
                chosen.append((int(examples.images[pair]), int(examples.texts[pair])))
                continue
            other = int(examples.right[rng.integers(len(examples))])
            if rng.random() < 0.5:
                stranger = (x, int(examples.texts[other]))
            else:
                stranger = (int(examples.images[other]), y)
            # A question may be drawn against itself, and a text may match several images: such a
            # pair is no negative.
            if not examples.may_match(*stranger):
                chosen.append(stranger)
            else:
                chosen.append((int(examples.images[own[0]]), int(examples.texts[own[0]])))
        # A question's pairs with one image share its copy; other images have copies of their own.
        copy = {image: 0 for image, _ in chosen}
        if examples.copies:
            copy = {image: int(rng.integers(1 + examples.copies)) for image in copy}
        images.append([image + count * copy[image] for image, _ in chosen])
        texts.append([text for _, text in chosen])
    level = rng.integers(len(settings.levels), size=settings.questions)
    return PairBatch(torch.tensor(images), torch.tensor(texts), torch.from_numpy(level))
