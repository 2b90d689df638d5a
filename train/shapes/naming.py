"""Naming what is seen: a loss that teaches the U-Net's features shapes and colours.

The matching score's own gradient is a poor teacher of shapes, which colours outshine. Here a linear
layer per cross-attention layer, used in training alone, names each thing from the image tokens that
show it. Only things whose caption does not say the word count: image tokens have read the caption
in the layers before, and a word that is copied from it teaches nothing about the picture.
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

_VISIBLE = 0.5  # cells


class Naming(nn.Module):
    """Names things from image tokens.

    Args:
        widths: of the image tokens of each cross-attention layer.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(w, len(SHAPES) + len(COLOURS)) for w in widths)

    def forward(
        self, seen: CrossAttention, masks: Tensor, labels: Tensor, weight: Tensor
    ) -> Tensor:
        """Cross-entropy of shape and of colour at one layer, added up.

        Args:
            seen: the layer's attention to a batch of rows.
            masks: share of each cell a thing covers, (rows, MAX_THINGS, h, w).
            labels: shape and colour of each thing, (rows, MAX_THINGS, 2).
            weight: of each, (rows, MAX_THINGS, 2); 0 leaves it out.
        """
        side = math.isqrt(seen.image_states.shape[1])
        where = F.adaptive_avg_pool2d(masks, side).flatten(2)
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
    """What each thing is, and which of it a row's caption does not say.

    Args:
        scenes: what each row shows.
        captions: what each row is told.
        masks: (rows, MAX_THINGS, h, w).

    Returns:
        Indices of shape and colour, int64 (rows, MAX_THINGS, 2), and 1 where the thing is to be
        seen and the caption does not have the word, (rows, MAX_THINGS, 2).
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
