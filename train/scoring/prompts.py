"""Attention prompts: learned, image-conditional changes of the key and value matrices (Eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GRID = 4  # the mapping network sees the latent averaged to 4 x 4 cells


@dataclass(frozen=True)
class PromptConfig:
    """Sizes of the prompts.

    Attributes:
        rank: of each static prompt P = up @ down; None is P itself, a full matrix.
        hidden: width of the mapping network m_theta.
        latent_channels: channels of the latent z it looks at.
    """

    rank: int | None = 4
    hidden: int = 32
    latent_channels: int = 4


class MatrixPrompt(nn.Module):
    """W' = W + p(x), p(x) = P + u pi(x)^T, for one key or value matrix W of (inner, D) (Eq. 5).

    The rank-one form is there because adding one vector to every key adds the same number to all
    logits of a query, which softmax ignores; u (pi(x) . r_j) depends on the token j.
    """

    def __init__(self, inner: int, text_width: int, rank: int | None) -> None:
        super().__init__()
        self.full = rank is None
        if rank is None:
            self.matrix = nn.Parameter(torch.zeros(inner, text_width))
        else:
            self.down = nn.Parameter(torch.randn(rank, text_width) / text_width**0.5)
            self.up = nn.Parameter(torch.zeros(inner, rank))
        self.u = nn.Parameter(torch.ones(inner))
        self.folded = False

    def static(self) -> Tensor:
        """P, (inner, D); zero at initialisation."""
        return self.matrix if self.full else self.up @ self.down

    def fold_into(self, weight: Tensor) -> None:
        """Add P to W in place, once and for all; `forward` then leaves it out."""
        with torch.no_grad():
            weight.copy_(weight.float() + self.static())  # rounded once, whatever W's precision
        self.folded = True

    def forward(self, weight: Tensor, text_states: Tensor, pi: Tensor) -> Tensor:
        """W' r_y, the keys or values of an image.

        Args:
            weight: W, (inner, D).
            text_states: r_y, (batch, text_tokens, D).
            pi: pi(x), (batch, D).

        Returns:
            (batch, text_tokens, inner).
        """
        if not self.folded:
            weight = weight + self.static()
        return self.condition(weight, text_states, pi)

    def condition(self, weight: Tensor, text_states: Tensor, pi: Tensor) -> Tensor:
        """As `forward`, of W + P."""
        strength = text_states @ pi.unsqueeze(-1)  # pi(x) . r_j, (batch, text_tokens, 1)
        return F.linear(text_states, weight) + strength * self.u


class AttentionPrompts(nn.Module):
    """Key and value prompts of every cross-attention layer and their mapping network m_theta.

    An exact identity at initialisation: P is zero because `up` or P itself is, pi(x) because
    m_theta's last layer is.

    Args:
        inner_widths: rows of each layer's key matrix (heads x head_dim), in order of execution.
        text_width: D, its columns.
        config: sizes.
    """

    def __init__(self, inner_widths: list[int], text_width: int, config: PromptConfig) -> None:
        super().__init__()
        self.config = config
        self.text_width = text_width
        self.key = nn.ModuleList(MatrixPrompt(w, text_width, config.rank) for w in inner_widths)
        self.value = nn.ModuleList(MatrixPrompt(w, text_width, config.rank) for w in inner_widths)
        outputs = 2 * len(inner_widths) * text_width
        self.mapping = nn.Sequential(
            nn.Linear(config.latent_channels * _GRID * _GRID, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, outputs),
        )
        last = self.mapping[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def condition(self, latent: Tensor) -> Tensor:
        """pi(x) = m_theta(z) for all layers at once.

        Args:
            latent: the clean latent z, (batch, channels, h, w), sides divisible by 4.

        Returns:
            (layers, 2, batch, D); index 0 of the second axis is for keys, 1 for values.
        """
        cell = (latent.shape[2] // _GRID, latent.shape[3] // _GRID)
        cells = F.avg_pool2d(latent, cell).flatten(1)  # (batch, channels * 16)
        pi = self.mapping(cells.to(next(self.mapping.parameters()).dtype))
        return pi.unflatten(1, (len(self.key), 2, self.text_width)).permute(1, 2, 0, 3)
