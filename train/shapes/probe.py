"""How well a model matches held-out scenes: the table the embedded model is judged by."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from dsd_trt.train.shapes.diffusion import ShapesDiffusion
from dsd_trt.train.shapes.twins import TwinLatents, sample_twins

_EDITS_OF_INTEREST = ("subject", "object", "predicate", "swap", "size", "side")


@torch.no_grad()
def probe(model: ShapesDiffusion, data: TwinLatents, *, of_ten: int = 100) -> dict[str, float]:
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
    states, mask = encode_captions(model, captions)
    pictures, texts = np.meshgrid(np.arange(2), np.arange(2), indexing="ij")
    base = 2 * np.arange(len(twins))[:, None, None]
    scores = score_pairs(
        model, latents, states, mask, (base + pictures).ravel(), (base + texts).ravel()
    ).view(-1, 2, 2)  # (twins, picture, text)

    right: dict[str, list[bool]] = defaultdict(list)
    for pair, s in zip(twins, scores.tolist(), strict=True):
        names = [pair.edit]
        if pair.edit == "predicate":
            names.append(f"predicate: {pair.first.relation}")
        for name in names:
            right[f"image {name}"] += [s[0][0] > s[1][0], s[1][1] > s[0][1]]
            right[f"text {name}"] += [s[0][0] > s[0][1], s[1][1] > s[1][0]]
    count = min(of_ten, len(twins))
    choices = (np.arange(count)[:, None] + np.arange(10)[None]) % len(twins) * 2
    rows = np.repeat(2 * np.arange(count), 10)
    ten = score_pairs(model, latents, states, mask, rows, choices.ravel()).view(count, 10)
    right["R@1 of ten"] = [row[0] > max(row[1:]) for row in ten.tolist()]
    return {name: 100 * float(np.mean(hits)) for name, hits in sorted(right.items())}


def summary(table: dict[str, float]) -> str:
    """One line of the table: image/text accuracy of each kind of edit, and R@1."""
    parts = [
        f"{edit} {table[f'image {edit}']:.0f}/{table[f'text {edit}']:.0f}"
        for edit in _EDITS_OF_INTEREST
        if f"image {edit}" in table
    ]
    return ", ".join([*parts, f"R@1 {table['R@1 of ten']:.0f}"])


def encode_captions(model: ShapesDiffusion, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Text states (texts, 77, D) and token masks (texts, 77)."""
    parts = [model.encode(captions[i : i + 64])[1:] for i in range(0, len(captions), 64)]
    states, masks = zip(*parts, strict=True)
    return torch.cat(states), torch.cat(masks)


def score_pairs(
    model: ShapesDiffusion,
    latents: Tensor,
    states: Tensor,
    mask: Tensor,
    pictures: np.ndarray,
    texts: np.ndarray,
) -> Tensor:
    """f(y, x) averaged over the noise levels, for index pairs: (pairs,)."""
    scores = []
    for start in range(0, len(pictures), 64):
        x = torch.from_numpy(pictures[start : start + 64])
        y = torch.from_numpy(texts[start : start + 64])
        total = torch.zeros(len(x))
        for level in range(len(model.scoring.timesteps)):
            at = torch.full((len(x),), level)
            total += model.scoring(latents[x], at, states[y], mask[y])[0]
        scores.append(total / len(model.scoring.timesteps))
    return torch.cat(scores)
