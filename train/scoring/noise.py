"""Noise levels: the fixed timesteps, schedule constants and noise tensors of Eq. 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsd_trt.train.scoring.choices import DEFAULT_LEVELS, require_levels


@dataclass(frozen=True)
class FixedNoise:
    """Constants of the noised latent z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps_s (Eq. 1).

    Attributes:
        fractions: noise levels s, each in (0, 1).
        timesteps: t = round(s T), int64 (levels,).
        signal: factor sqrt(abar_t) of the clean latent, FP32 (levels,).
        spread: factor sqrt(1 - abar_t) of the noise, FP32 (levels,).
        eps: one noise tensor per level, shared by all images and texts, FP32 (levels, C, h, w).
        seed: random seed that `eps` was drawn with.
    """

    fractions: tuple[float, ...]
    timesteps: Tensor
    signal: Tensor
    spread: Tensor
    eps: Tensor
    seed: int


def noise_levels(
    alphas_cumprod: Tensor,
    shape: tuple[int, int, int],
    fractions: tuple[float, ...] = DEFAULT_LEVELS,
    seed: int = 0,
) -> FixedNoise:
    """Draw the constants of each noise level.

    Each level has its own generator, seeded by `seed` and the timestep. A level therefore keeps
    its noise whichever other levels are chosen.

    Args:
        alphas_cumprod: abar of the checkpoint's noise schedule, (T,).
        shape: shape (C, h, w) of one latent.
        fractions: noise levels s, each in (0, 1).
        seed: random seed of the noise.

    Raises:
        ValueError: the levels cannot be used, see `require_levels`.
    """
    require_levels(fractions)
    total = len(alphas_cumprod)
    timesteps = torch.tensor([min(round(s * total), total - 1) for s in fractions])
    abar = alphas_cumprod[timesteps].double()
    eps = torch.stack(
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed * 100_003 + int(t)))
            for t in timesteps
        ]
    )
    return FixedNoise(
        tuple(fractions), timesteps, abar.sqrt().float(), (1 - abar).sqrt().float(), eps, seed
    )
