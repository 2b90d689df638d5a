"""Relations: what matrix mode sees of where things are, "left of" or "above", without another pass.

The walk knows nothing of the text, and a pooled map nothing of its place: a text with its two nouns
exchanged scores almost the same. A text therefore chooses three of its tokens softly, by linear
maps of their states r_t: one noun (alpha), another (beta), and the word between them (gamma).

    p_k = sum_t k_t sum_h w_{k,h} centre_{h,t},   S_k likewise of S_{h,t},   k = alpha, beta
    (dx, dy) = p_alpha - p_beta
    c = sum_t gamma_t (C r_t + b)
    R = c . (dx, dy, |dx|, |dy|, dx^2, dy^2, S_alpha, S_beta, 1)

centre_{h,t} is the mean place of image tokens, x and y from -1 to 1, each weighted by
exp(lambda A) - 1, in head h of the first scored layer; the place of no mass is 0. w_k is a softmax
over these heads. R is added to the score of token heads, and learned after them, see
`dsd_trt.train.imitation`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dsd_trt.bundle.contract import LARGEST_LAMBDA
from dsd_trt.train.scoring.token_heads import fill, share

FEATURES = 9
"""Features of a couple of tokens that a relation weighs."""

LEAST_MASS = 1e-4
"""Least mass of a map, the mean of exp(lambda A) - 1; below it, its centre tends to the image's."""


class Relations(nn.Module):
    """The parameters: maps to alpha, beta and gamma, logits of w, C and b.

    Args:
        heads: number of heads of the first scored layer.
        width: D, the width of a token's state.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.roles: nn.Parameter = nn.Parameter(torch.zeros(3, width))
        self.heads: nn.Parameter = nn.Parameter(torch.zeros(2, heads))
        self.of_word: nn.Parameter = nn.Parameter(torch.zeros(FEATURES, width))
        self.base: nn.Parameter = nn.Parameter(torch.zeros(FEATURES))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], heads: int, width: int) -> Relations:
        """Relations with the parameters of an adapter.

        Raises:
            ModelError: they are of another number of heads, or of other text states.
        """
        made = cls(heads, width)
        fill(made, tensors, "relations", heads, width)
        return made

    def forward(self, words: Tensor, token_mask: Tensor, pooled: Tensor, centres: Tensor) -> Tensor:
        """Terms of R of each image's texts; see `relate`."""
        parts = (self.roles, self.heads, self.of_word, self.base)
        return relate(words, token_mask, pooled, centres, *parts)


def relate(
    words: Tensor,
    token_mask: Tensor,
    pooled: Tensor,
    centres: Tensor,
    roles: Tensor,
    heads: Tensor,
    of_word: Tensor,
    base: Tensor,
) -> Tensor:
    """Terms of R of each image's texts: features, each times its weight.

    Args:
        words: states r_t, (images or 1, texts, tokens, D).
        token_mask: 1 where a token counts, else 0, (images or 1, texts, tokens).
        pooled: pooled attention S of the first layer's heads, FP32 (images, heads, texts, tokens).
        centres: centres of their maps, FP32 (images, heads, texts, tokens, 2).
        roles: directions of states of alpha, beta and gamma, (3, D).
        heads: logits of the heads' weights for alpha and beta, (2, heads).
        of_word: C, what a token's state adds to a relation, (9, D).
        base: b, what every relation has, (9,).

    Returns:
        FP32 (images, texts, 9), which R sums; 0 for a text in which no token counts.
    """
    states = words.float()
    strength = (states @ roles.T).transpose(2, 3)  # (images or 1, texts, 3, tokens)
    each = share(strength, token_mask[:, :, None])
    relation = ((states @ of_word.T + base) * each[:, :, 2, :, None]).sum(dim=2)
    # (images or 1, 2, heads, texts, tokens), times places and S
    weights = each[:, :, :2].transpose(1, 2)[:, :, None] * heads.softmax(dim=1)[:, :, None, None]
    seen = torch.cat([centres, pooled[..., None]], dim=4)[:, None]
    first, second = (weights[..., None] * seen).sum(dim=(2, 4)).unbind(dim=1)  # (images, texts, 3)
    apart = first[..., :2] - second[..., :2]
    both = (first[..., 2:], second[..., 2:])
    features = [apart, apart.abs(), apart * apart, *both, torch.ones_like(both[0])]
    return relation * torch.cat(features, dim=2)


def centre_basis(rows: int, columns: int) -> Tensor:
    """1, x and y of each image token, divided by their number, FP32 (image_tokens, 3).

    Args:
        rows: number of rows of image tokens, from top to bottom.
        columns: number of image tokens in a row.
    """
    y, x = (2 * (torch.arange(count) + 0.5) / count - 1 for count in (rows, columns))
    places = [torch.ones(rows * columns), x.repeat(rows), y.repeat_interleave(columns)]
    return torch.stack(places, dim=1) / (rows * columns)


def centres_of(attention: Tensor, lam: float, basis: Tensor) -> Tensor:
    """Centres of maps, weighted by exp(lambda A) - 1, which is 0 where nothing attends.

    Args:
        attention: A, FP32 in [0, 1], (..., image_tokens).
        lam: sharpness lambda of the pooling.
        basis: places of image tokens, see `centre_basis`.

    Returns:
        x and y of each map, FP32 (..., 2).
    """
    sharp = (min(lam, LARGEST_LAMBDA) * attention).exp()  # A is at most 1, so it cannot overflow
    moments = (sharp - 1) @ basis  # (..., 3): mass, and mass times place
    return moments[..., 1:] / moments[..., :1].clamp(min=LEAST_MASS)
