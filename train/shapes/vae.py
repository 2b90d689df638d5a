"""The demonstration's autoencoder, from 64 x 64 pixels to an 8 x 8 latent of 16 channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dsd_trt.train.run.state import restore_optimizer, resumed, save_state
from dsd_trt.train.shapes.render import draw
from dsd_trt.train.shapes.scene import sample_scene

_KL_WEIGHT = 2e-7  # at 1e-5 half of the channels collapse and small things vanish
_THING_WEIGHT = 5.0  # weight of a thing's pixels relative to the background


def build_vae() -> AutoencoderKL:
    """An untrained autoencoder with 1.0 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
    )


def random_images(seed: int, step: int, batch: int) -> tuple[Tensor, Tensor]:
    """A batch of drawn scenes, which depends on the arguments alone.

    Args:
        seed: random seed of the scenes.
        step: index of the training step.
        batch: number of images in the batch.

    Returns:
        Images in [-1, 1], FP32 (batch, 3, 64, 64), and 1 where a pixel shows a thing, FP32
        (batch, 1, 64, 64).
    """
    rng = np.random.default_rng([seed, step])
    drawings = [draw(sample_scene(rng), rng) for _ in range(batch)]
    pixels = torch.from_numpy(np.stack([drawing.pixels for drawing in drawings]))
    things = torch.from_numpy(np.stack([drawing.masks.any(axis=0) for drawing in drawings]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, things[:, None].float()


def train_vae(
    folder: Path,
    *,
    seed: int,
    steps: int,
    batch: int = 16,
    learning_rate: float = 2e-3,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> AutoencoderKL:
    """Train the autoencoder, or resume from `vae.ckpt`.

    The loss is L1 + L2 reconstruction, with things weighted above the background, and a small KL
    term. As in Stable Diffusion, `scaling_factor` is one over the latents' standard deviation.

    Args:
        folder: folder of the training state `vae.ckpt`.
        seed: random seed of weights and images.
        steps: number of optimiser steps.
        batch: number of images per step.
        learning_rate: peak learning rate, after 100 steps of warm-up; cosine decay to zero.
        report: callback `(step, loss)` after each step.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=1e-4)
    start = 0
    with resumed(folder / "vae.ckpt") as state:
        if state is not None:
            vae.load_state_dict(state["vae"])
            restore_optimizer(optimizer, state["optimizer"])
            start = int(state["step"])
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine(step, steps, warm_up=100)
        images, things = random_images(seed, step, batch)
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step))
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        error = decoded - images
        weight = 1 + (_THING_WEIGHT - 1) * things
        loss = ((error.abs() + error.square()) * weight).mean()
        loss = loss + _KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        report(step + 1, loss.item())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            save_state(
                folder / "vae.ckpt",
                {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
            )
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = vae.encode(random_images(seed, steps, 256)[0]).latent_dist.mean
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    return vae


def cosine(step: int, steps: int, *, warm_up: int) -> float:
    """Factor of the learning rate, in [0, 1]: linear warm-up, then cosine decay to zero.

    Args:
        step: index of the step, from 0.
        steps: number of all steps.
        warm_up: number of steps of the linear warm-up.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
