"""Naming: an auxiliary loss that teaches the U-Net's features shapes and colours.

The matching score's gradient teaches shapes poorly, because colours dominate it. Here a linear
layer per cross-attention layer, used in training alone, predicts each thing's shape and colour
from the image tokens that show it. Words in the caption are excluded: image tokens have attended
to the caption in earlier layers, and copying a word from it teaches nothing about the image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.train.scoring.pooling import CrossAttention
from dsd_trt.train.shapes.scene import COLOURS, SHAPES, Scene
from dsd_trt.train.shapes.twins import MAX_THINGS

_VISIBLE = 0.5  # latent cells that a visible thing covers at least


class Naming(nn.Module):
    """Predicts shape and colour of things from image tokens.

    Args:
        widths: number of features of an image token, per cross-attention layer.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers: nn.ModuleList = nn.ModuleList(
            nn.Linear(w, len(SHAPES) + len(COLOURS)) for w in widths
        )

    def forward(
        self, seen: CrossAttention, masks: Tensor, labels: Tensor, weight: Tensor
    ) -> Tensor:
        """Sum of the cross-entropies of shape and of colour at one layer.

        Args:
            seen: image tokens of the layer, for a batch of rows.
            masks: share of each latent cell that a thing covers, (rows, MAX_THINGS, h, w).
            labels: indices of shape and colour of each thing, int64 (rows, MAX_THINGS, 2).
            weight: weight of each label, 0 to leave it out, (rows, MAX_THINGS, 2).
        """
        side = math.isqrt(seen.image_states.shape[1])
        where = F.adaptive_avg_pool2d(masks, side).flatten(2)  # (rows, MAX_THINGS, image_tokens)
        where = where / where.sum(dim=2, keepdim=True).clamp(min=1e-4)
        logits = self.layers[seen.layer](where @ seen.image_states)  # (rows, MAX_THINGS, words)
        loss = logits.new_zeros(())
        for kind, of_kind in enumerate(logits.split([len(SHAPES), len(COLOURS)], dim=2)):
            each = F.cross_entropy(of_kind.transpose(1, 2), labels[..., kind], reduction="none")
            share = weight[..., kind]
            loss = loss + (each * share).sum() / share.sum().clamp(min=1)
        return loss


def unsaid(
    scenes: Sequence[Scene], captions: Sequence[str], masks: Tensor
) -> tuple[Tensor, Tensor]:
    """Labels of each thing, and which of them a row's caption does not contain.

    Args:
        scenes: scene of each row's image.
        captions: caption of each row.
        masks: share of each latent cell that a thing covers, (rows, MAX_THINGS, h, w).

    Returns:
        Indices of shape and colour, int64 (rows, MAX_THINGS, 2), and 1 where the thing is visible
        and the caption lacks the word, (rows, MAX_THINGS, 2).
    """
    labels = torch.zeros(len(scenes), MAX_THINGS, 2, dtype=torch.long)
    hidden = torch.zeros(len(scenes), MAX_THINGS, 2)
    for row, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
        said = set(re.findall(r"\w+", caption.lower()))
        for k, thing in enumerate(scene.things):
            labels[row, k] = torch.tensor([SHAPES.index(thing.shape), COLOURS.index(thing.colour)])
            hidden[row, k] = torch.tensor([thing.shape not in said, thing.colour not in said])
    visible = masks.sum(dim=(2, 3)) > _VISIBLE
    return labels, hidden * visible[..., None]
