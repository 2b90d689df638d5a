"""Attention prompts: learned, image-conditional updates of key and value matrices (Eq. 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.train.scoring.choices import PromptConfig
from dsd_trt.train.scoring.low_rank import updated_linear

_GRID = 4  # the mapping network's input is the latent, average-pooled to 4 x 4 cells


class MatrixPrompt(nn.Module):
    """Prompt of one key or value matrix: W' = W + p(x), p(x) = P + u pi(x)^T (Eq. 5).

    Adding one vector to every key would add the same number to all logits of a query, which
    softmax ignores. The rank-one form adds u (pi(x) . r_j), which depends on the token j.

    Args:
        inner: number of rows of W (heads x head_dim).
        text_width: D, the number of columns of W.
        rank: rank of the static prompt P; None makes P a full matrix.
    """

    def __init__(self, inner: int, text_width: int, rank: int | None) -> None:
        super().__init__()
        self.full: bool = rank is None
        if rank is None:
            self.matrix: nn.Parameter = nn.Parameter(torch.zeros(inner, text_width))
        else:
            self.down: nn.Parameter = nn.Parameter(torch.randn(rank, text_width) / text_width**0.5)
            self.up: nn.Parameter = nn.Parameter(torch.zeros(inner, rank))
        self.u: nn.Parameter = nn.Parameter(torch.ones(inner))
        self.folded: bool = False

    def static(self) -> Tensor:
        """Static prompt P, (inner, D); zero at initialisation."""
        return self.matrix if self.full else self.up @ self.down

    def fold_into(self, weight: Tensor) -> None:
        """Add P to W in place; `forward` no longer adds it afterwards."""
        with torch.no_grad():
            # The sum is taken in FP32, so that a W of lower precision is rounded only once.
            weight.copy_(weight.float() + self.static())
        self.folded = True

    def forward(self, weight: Tensor, text_states: Tensor, pi: Tensor) -> Tensor:
        """Keys or values W' r_y of each text, conditioned on its image.

        Args:
            weight: frozen key or value matrix W, (inner, D).
            text_states: r_y, (batch, text_tokens, D).
            pi: mapping network's output pi(x) for this matrix, (batch, D).

        Returns:
            Keys or values, (batch, text_tokens, inner).
        """
        if self.folded:
            return self.condition(weight, text_states, pi)
        if self.full or torch.is_autocast_enabled(text_states.device.type):
            return self.condition(weight + self.static(), text_states, pi)
        projected = updated_linear(text_states, weight, None, self.down, self.up)
        return projected + self._tilt(text_states, pi)

    def condition(self, weight: Tensor, text_states: Tensor, pi: Tensor) -> Tensor:
        """Keys or values W' r_y, for a matrix that includes the static prompt.

        Args:
            weight: key or value matrix with the static prompt, W + P, (inner, D).
            text_states: r_y of each text, (..., text_tokens, D).
            pi: mapping network's output pi(x) for this matrix, (..., D), whose leading axes are
                broadcast with those of `text_states`.

        Returns:
            Keys or values, (..., text_tokens, inner).
        """
        return F.linear(text_states, weight) + self._tilt(text_states, pi)

    def _tilt(self, text_states: Tensor, pi: Tensor) -> Tensor:
        """The image-conditional part u (pi(x) . r_j), (..., text_tokens, inner)."""
        strength = text_states @ pi.unsqueeze(-1)  # pi(x) . r_j: (..., text_tokens, 1)
        return strength * self.u


class AttentionPrompts(nn.Module):
    """Key and value prompts of every cross-attention layer and their mapping network m_theta.

    At initialisation W' equals W exactly: P is zero, and so is m_theta's last layer.

    Args:
        inner_widths: rows of each layer's key matrix (heads x head_dim), in order of execution.
        text_width: D, the number of columns of every key and value matrix.
        config: rank of the static prompts and sizes of the mapping network.
    """

    def __init__(self, inner_widths: list[int], text_width: int, config: PromptConfig) -> None:
        super().__init__()
        self.config = config
        self.text_width = text_width
        self.key: nn.ModuleList = nn.ModuleList(
            MatrixPrompt(w, text_width, config.rank) for w in inner_widths
        )
        self.value: nn.ModuleList = nn.ModuleList(
            MatrixPrompt(w, text_width, config.rank) for w in inner_widths
        )
        outputs = 2 * len(inner_widths) * text_width
        self.mapping: nn.Sequential = nn.Sequential(
            nn.Linear(config.latent_channels * _GRID * _GRID, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, outputs),
        )
        last = self.mapping[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def freeze_condition(self) -> None:
        """Train the static prompts P alone, and leave the image-conditional part as it is."""
        self.mapping.requires_grad_(False)
        for prompt in (*self.key, *self.value):
            assert isinstance(prompt, MatrixPrompt)
            prompt.u.requires_grad_(False)

    def pi(self, latent: Tensor) -> Tensor:
        """The mapping network's output m_theta(z) for all layers at once.

        Args:
            latent: clean latent z, (batch, channels, h, w), with h and w divisible by 4.

        Returns:
            pi(x), (layers, 2, batch, D); on the second axis 0 is for keys and 1 for values.
        """
        cell = (latent.shape[2] // _GRID, latent.shape[3] // _GRID)
        cells = F.avg_pool2d(latent, cell).flatten(1)  # (batch, channels * 16)
        pi = self.mapping(cells.to(next(self.mapping.parameters()).dtype))
        return pi.unflatten(1, (len(self.key), 2, self.text_width)).permute(1, 2, 0, 3)
