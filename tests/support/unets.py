"""Small U-Nets of the Stable Diffusion family with random weights, and inputs for them.

Some fresh modules hardly change their input: norms are ones and zeros, and attention is nearly
uniform. A forward pass that skips one would go unnoticed. So every parameter is perturbed, and
queries and keys are scaled up.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from dsd_trt.train.scoring.noise import FixedNoise, noise_levels

TEXT_WIDTH = 24  # D
TOKENS = 9  # text tokens; nothing in the U-Net depends on their being 77
SIDE = 8
_CROSS, _PLAIN = "CrossAttn", ""


def _blocks(down: tuple[str, ...], up: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in down),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in up),
    }


_SD_BLOCKS = _blocks((_CROSS, _CROSS, _PLAIN), (_PLAIN, _CROSS, _CROSS))
_SDXL_BLOCKS = _blocks((_PLAIN, _CROSS, _CROSS), (_CROSS, _CROSS, _PLAIN))
_SHAPES_BLOCKS = _blocks((_CROSS, _CROSS), (_CROSS, _CROSS))

# The differences of released checkpoints: projections, heads, blocks without attention, depth.
FAMILY: dict[str, dict[str, Any]] = {
    "sd 1": {**_SD_BLOCKS, "layers_per_block": 2, "attention_head_dim": 2},
    "sd 2": {
        **_SD_BLOCKS,
        "layers_per_block": 2,
        "attention_head_dim": (1, 2, 4),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        **_SDXL_BLOCKS,
        "layers_per_block": (1, 2, 1),
        "attention_head_dim": (1, 2, 4),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
    },
    "sdxl, convolutions": {
        **_SDXL_BLOCKS,
        "layers_per_block": 1,
        "attention_head_dim": (1, 4, 2),
        "transformer_layers_per_block": (1, 3, 2),
    },
    "shapes": {**_SHAPES_BLOCKS, "layers_per_block": 1, "attention_head_dim": 2},
}


def random_unet(name: str = "shapes", *, seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """A frozen member of `FAMILY` with random parameters.

    Args:
        name: name of the member in `FAMILY`.
        seed: seed of the random parameters.
        changes: settings of the U-Net that replace the member's.
    """
    torch.manual_seed(seed)
    config = {**FAMILY[name], **changes}
    widths = (16, 32, 32)[: len(config["down_block_types"])]
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=widths,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
        **config,
    )
    perturb(unet)
    return unet.eval().requires_grad_(False)


def perturb(module: nn.Module) -> None:
    """Perturb a fresh module's parameters, so that each of them affects the output."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape), alpha=0.3)
            if ".to_q." in name or ".to_k." in name:
                parameter.mul_(3)


def random_levels(seed: int = 0) -> FixedNoise:
    """The four default noise levels on Stable Diffusion's noise schedule."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return noise_levels(scheduler.alphas_cumprod, (4, SIDE, SIDE), seed=seed)


def random_pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random latents, levels, text states and token masks of `count` pairs."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(count, 4, SIDE, SIDE, generator=generator)
    level = torch.randint(4, (count,), generator=generator)
    text_states = torch.randn(count, TOKENS, TEXT_WIDTH, generator=generator)
    ends = torch.randint(2, TOKENS, (count, 1), generator=generator)
    places = torch.arange(TOKENS)
    return latent, level, text_states, ((places > 0) & (places <= ends)).float()
