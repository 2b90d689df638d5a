"""Head weights w_{l,h} of the score (Eq. 4), learned or calibrated by attribution (Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsd_trt.train.scoring.pooling import pool
from dsd_trt.train.scoring.scoring_unet import Response, ScoringUNet, average_heads, average_tokens


class LearnedHeadWeights(nn.Module):
    """Weights of all heads of all scored layers, a softmax over learned logits.

    Args:
        initial: initial weights, summing to 1, (heads,).
        learned: whether the weights are trained; if not, they keep their initial values.
    """

    def __init__(self, initial: Tensor, *, learned: bool) -> None:
        super().__init__()
        share = initial.clamp(min=1e-6 / len(initial))  # log(0) would never receive a gradient
        self.logits: nn.Parameter = nn.Parameter(share.log(), requires_grad=learned)

    def forward(self) -> Tensor:
        """Head weights w_{l,h}, summing to 1, FP32 (heads,)."""
        return self.logits.softmax(dim=0)


def head_attributions(
    scoring: ScoringUNet,
    latent: Tensor,
    level: Tensor,
    text_states: Tensor,
    token_mask: Tensor,
) -> Tensor:
    """Attribution of every head by exact gradients (Eq. 7): sum_ij A_ij df / dA_ij.

    The gradient is that of the whole score f. It includes the effect of a layer's attention on
    later layers, which the closed form of `pooling.attribution` leaves out.

    Args:
        scoring: scoring U-Net, with prompts or without.
        latent: clean latent z, (batch, C, h, w).
        level: index into the noise levels, integer (batch,).
        text_states: r_y, (batch, text_tokens, D).
        token_mask: 1 where a token counts, else 0, (batch, text_tokens).

    Returns:
        Attribution of each head of each scored layer, FP32 (batch, heads).
    """
    maps: list[Tensor] = []
    pooled: list[Tensor] = []
    with torch.enable_grad():
        pi = None if scoring.prompts is None else scoring.prompts.pi(latent)
        z_t = scoring.add_noise(latent, level)
        for seen in scoring.cross_attentions(z_t, scoring.timesteps[level], text_states, pi):
            if not seen.attention.requires_grad:
                seen.attention.requires_grad_()
            if seen.layer in scoring.score_layers:
                maps.append(seen.attention)
                pooled.append(pool(seen, scoring.pooling, scoring.lam))
            if seen.layer == scoring.score_layers[-1]:
                break
        response = Response(torch.cat(pooled, dim=1), None, None)
        f = average_tokens(average_heads(response, scoring.head_weights), token_mask)
        gradients = torch.autograd.grad(f.sum(), maps)
    # Each: (batch, heads, image_tokens, text_tokens) -> (batch, heads)
    products = [(a * g).sum(dim=(2, 3)) for a, g in zip(maps, gradients, strict=True)]
    return torch.cat(products, dim=1).detach()


def calibrated_weights(attributions: Sequence[Tensor]) -> Tensor:
    """Head weights from attributions over a few-shot set: their mean, clamped at 0.

    Args:
        attributions: attributions of positive pairs, one (batch, heads) tensor per batch.

    Returns:
        Weights summing to 1, (heads,); uniform if no head has a positive mean.
    """
    mean = torch.cat(list(attributions)).mean(dim=0).clamp(min=0)
    total = mean.sum()
    return mean / total if total > 0 else torch.full_like(mean, 1 / len(mean))
