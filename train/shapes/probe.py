"""How well a model matches held-out scenes: the table the embedded model is judged by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dsd_trt.train.scoring.scoring_unet import ScoringUNet
from dsd_trt.train.shapes.twins import TwinLatents, sample_twins

EncodeTexts = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Texts to text states (texts, 77, D) and token masks (texts, 77)."""

_EDITS_OF_INTEREST = ("subject", "object", "predicate", "swap", "size", "side")


@torch.no_grad()
def probe(
    scoring: ScoringUNet, encode_texts: EncodeTexts, data: TwinLatents, *, of_ten: int = 100
) -> dict[str, float]:
    """Accuracy in percent on twins the model never saw; ties are wrong.

    Returns:
        For each kind of edit, "image <edit>": given a text, the right picture of two (chance 50)
        and "text <edit>": given a picture, the right text of two (chance 50); predicates also per
        relation; "R@1 of ten": given a picture, the right text of ten (chance 10), over the first
        `of_ten` twins with the captions of nine others as wrong answers.
    """
    rng = np.random.default_rng(data.seed)
    twins = [sample_twins(data.seed, i) for i in range(len(data))]
    captions = [text for pair in twins for text in pair.captions(rng)]
    latents = torch.from_numpy(data.latents.astype(np.float32)).flatten(0, 1)
    encoded = [encode_texts(captions[i : i + 64]) for i in range(0, len(captions), 64)]
    device = scoring.head_weights.device
    latents = latents.to(device)
    states, masks = (torch.cat(parts).to(device) for parts in zip(*encoded, strict=True))

    def scores(pictures: Tensor, texts: Tensor) -> Tensor:
        return mean_scores(scoring, latents, states, masks, pictures, texts)

    pairs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])  # (picture, text) within a twin
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
    pictures = 2 * torch.arange(count).repeat_interleave(10)
    ten = scores(pictures, texts.flatten()).view(count, 10).tolist()
    right["R@1 of ten"] = [row[0] > max(row[1:]) for row in ten]
    return {name: 100 * float(np.mean(hits)) for name, hits in sorted(right.items())}


def summary(table: dict[str, float]) -> str:
    """One line of the table: image/text accuracy of each kind of edit, and R@1."""
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
    pictures: Tensor,
    texts: Tensor,
) -> Tensor:
    """f(y, x) averaged over the noise levels, for index pairs: (pairs,)."""
    scores = []
    for x, y in zip(pictures.split(64), texts.split(64), strict=True):
        at_levels = [
            scoring(latents[x], level.expand(len(x)), states[y], masks[y])[0]
            for level in torch.arange(len(scoring.timesteps), device=latents.device)
        ]
        scores.append(torch.stack(at_levels).mean(dim=0))
    return torch.cat(scores)
