"""Accuracy on held-out scenes, by which the demonstration is evaluated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dsd_trt.train.scoring.scoring_unet import ScoringUNet
from dsd_trt.train.shapes.twins import TwinLatents, sample_twins

EncodeTexts = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Function from texts to text states r_y (texts, 77, D) and token masks (texts, 77)."""

_EDITS_OF_INTEREST = ("subject", "object", "predicate", "swap", "size", "side")


@torch.no_grad()
def probe(
    scoring: ScoringUNet, encode_texts: EncodeTexts, data: TwinLatents, *, of_ten: int = 100
) -> dict[str, float]:
    """Accuracy on held-out twins, in percent; a tie counts as a wrong answer.

    Args:
        scoring: scoring U-Net to evaluate.
        encode_texts: function from texts to text states and token masks.
        data: encoded twins that were not trained on.
        of_ten: maximum number of questions with ten texts.

    Returns:
        Accuracies by name. "image EDIT": given a text, the right image of two (chance 50).
        "text EDIT": given an image, the right text of two (chance 50). Predicates also have one
        entry per relation. "R@1 of ten": given an image, the right text of ten (chance 10), with
        captions of nine other twins as wrong answers.
    """
    rng = np.random.default_rng(data.seed)
    twins = [sample_twins(data.seed, i) for i in range(len(data))]
    captions = [text for pair in twins for text in pair.captions(rng)]
    latents = torch.from_numpy(data.latents.astype(np.float32)).flatten(0, 1)
    encoded = [encode_texts(captions[i : i + 64]) for i in range(0, len(captions), 64)]
    device = scoring.head_weights.device
    latents = latents.to(device)
    states, masks = (torch.cat(parts).to(device) for parts in zip(*encoded, strict=True))

    def scores(images: Tensor, texts: Tensor) -> Tensor:
        return mean_scores(scoring, latents, states, masks, images, texts)

    pairs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])  # (image, text) within a twin
    indices = 2 * torch.arange(len(twins))[:, None, None] + pairs
    right: dict[str, list[bool]] = defaultdict(list)
    of_twins = scores(*indices.flatten(0, 1).unbind(dim=1)).view(-1, 2, 2).tolist()
    for pair, s in zip(twins, of_twins, strict=True):
        names = [pair.edit]
        if pair.edit == "predicate":
            names.append(f"predicate: {pair.first.relation}")
        for name in names:
            right[f"image {name}"] += [s[0][0] > s[1][0], s[1][1] > s[0][1]]
            right[f"text {name}"] += [s[0][0] > s[0][1], s[1][1] > s[1][0]]

    count = min(of_ten, len(twins))
    texts = 2 * ((torch.arange(count)[:, None] + torch.arange(10)) % len(twins))
    images = 2 * torch.arange(count).repeat_interleave(10)
    ten = scores(images, texts.flatten()).view(count, 10).tolist()
    right["R@1 of ten"] = [row[0] > max(row[1:]) for row in ten]
    return {name: 100 * float(np.mean(hits)) for name, hits in sorted(right.items())}


def summary(table: dict[str, float]) -> str:
    """The accuracies in one line: image/text accuracy of each edit, and R@1."""
    parts = [
        f"{edit} {table[f'image {edit}']:.0f}/{table[f'text {edit}']:.0f}"
        for edit in _EDITS_OF_INTEREST
        if f"image {edit}" in table
    ]
    return ", ".join([*parts, f"R@1 {table['R@1 of ten']:.0f}"])


def mean_scores(
    scoring: ScoringUNet,
    latents: Tensor,
    states: Tensor,
    masks: Tensor,
    images: Tensor,
    texts: Tensor,
) -> Tensor:
    """Score f(y, x) of each pair, averaged over noise levels, FP32 (pairs,).

    Args:
        scoring: scoring U-Net to evaluate.
        latents: clean latent z of each image, (images, C, h, w).
        states: r_y of each text, (texts, 77, D).
        masks: 1 where a token counts, else 0, (texts, 77).
        images: index of each pair's image, int64 (pairs,).
        texts: index of each pair's text, int64 (pairs,).
    """
    scores = []
    for x, y in zip(images.split(64), texts.split(64), strict=True):
        at_levels = [
            scoring(latents[x], level.expand(len(x)), states[y], masks[y])[0]
            for level in torch.arange(len(scoring.timesteps), device=latents.device)
        ]
        scores.append(torch.stack(at_levels).mean(dim=0))
    return torch.cat(scores)
