"""Noise levels against the schedule's definition in float64 and diffusers' schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler, SchedulerMixin
from numpy.typing import NDArray
from torch import Tensor
from unets import random_levels, random_pairs, random_unet

from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.scoring.choices import DEFAULT_LEVELS
from dsd_trt.train.scoring.noise import noise_levels
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

SHAPE = (4, 8, 8)


def scaled_linear(steps: int, first: float, last: float) -> NDArray[np.float64]:
    """Stable Diffusion's betas: linear in the square root."""
    root = first**0.5 + (last**0.5 - first**0.5) * np.arange(steps) / (steps - 1)
    return root**2


def linear(steps: int, first: float, last: float) -> NDArray[np.float64]:
    return first + (last - first) * np.arange(steps) / (steps - 1)


SCHEDULES: list[tuple[SchedulerMixin, NDArray[np.float64]]] = [
    (
        DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", prediction_type=prediction),
        scaled_linear(1000, 0.00085, 0.012),
    )
    for prediction in ("epsilon", "v_prediction")
] + [
    (DDPMScheduler(1000, 1e-4, 0.02, "linear"), linear(1000, 1e-4, 0.02)),
    (DDPMScheduler(250, 0.002, 0.03, "scaled_linear"), scaled_linear(250, 0.002, 0.03)),
]


@pytest.mark.parametrize(("scheduler", "betas"), SCHEDULES)
def test_constants_equal_a_float64_product_of_one_minus_beta(
    scheduler: SchedulerMixin, betas: NDArray[np.float64]
) -> None:
    levels = noise_levels(scheduler.alphas_cumprod, SHAPE)
    for i, s in enumerate((0.2, 0.4, 0.6, 0.8)):
        t = int(levels.timesteps[i])
        assert t == int(s * len(betas) + 0.5)
        abar = 1.0
        for beta in betas[: t + 1]:
            abar *= 1 - beta
        # The schedule itself comes from diffusers as a product in FP32.
        assert levels.signal[i].item() == pytest.approx(abar**0.5, rel=1e-5)
        assert levels.spread[i].item() == pytest.approx((1 - abar) ** 0.5, rel=1e-5)
    assert levels.fractions == DEFAULT_LEVELS == (0.2, 0.4, 0.6, 0.8)
    assert levels.eps.shape == (4, *SHAPE)
    assert levels.signal.dtype == levels.spread.dtype == levels.eps.dtype == torch.float32


@pytest.mark.parametrize(("scheduler", "betas"), SCHEDULES)
def test_noised_latents_equal_the_schedulers_own(
    scheduler: SchedulerMixin, betas: NDArray[np.float64]
) -> None:
    levels = noise_levels(scheduler.alphas_cumprod, SHAPE, seed=3)
    scoring = ScoringUNet(random_unet(), levels)
    latent = random_pairs(5)[0]
    level = torch.tensor([2, 0, 3, 3, 1])
    expected = scheduler.add_noise(latent, levels.eps[level], levels.timesteps[level])
    assert (scoring.add_noise(latent, level) - expected).abs().max() < 1e-6


def test_a_zero_terminal_signal_is_noise_alone() -> None:
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    levels = noise_levels(scheduler.alphas_cumprod, SHAPE, (0.5, 0.9999))
    assert levels.timesteps.tolist() == [500, 999]
    assert levels.signal[1] < 1e-3
    assert levels.spread[1].item() == pytest.approx(1)


@torch.no_grad()
def test_what_enters_the_unet_is_the_same_noise_for_every_image_and_text() -> None:
    levels = random_levels()
    scoring = ScoringUNet(random_unet(), levels)
    entered: list[Tensor] = []
    scoring.unet.conv_in.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    latent, level, text_states, mask = random_pairs(6)
    scoring(latent, level.int(), text_states, mask)
    scoring(latent.flip(0), level, text_states.flip(1), mask)
    for z, z_t in zip((latent, latent.flip(0)), entered, strict=True):
        for i, s in enumerate(level.tolist()):
            abar = float(levels.signal[s]) ** 2
            eps = (z_t[i] - abar**0.5 * z[i]) / (1 - abar) ** 0.5
            assert (eps - levels.eps[s]).abs().max() < 1e-5


def test_a_level_keeps_its_noise_whichever_others_are_chosen() -> None:
    abar = SCHEDULES[0][0].alphas_cumprod
    four = noise_levels(abar, SHAPE, (0.2, 0.4, 0.6, 0.8), seed=5)
    two = noise_levels(abar, SHAPE, (0.8, 0.4), seed=5)
    assert torch.equal(two.eps, four.eps[[3, 1]])
    assert torch.equal(two.signal, four.signal[[3, 1]])
    assert torch.equal(two.timesteps, four.timesteps[[3, 1]])


def test_the_seed_names_the_noise() -> None:
    abar = SCHEDULES[0][0].alphas_cumprod
    first, again, other = (noise_levels(abar, SHAPE, seed=seed).eps for seed in (0, 0, 1))
    assert torch.equal(first, again)
    draws = [*first.flatten(1), *other.flatten(1)]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(8)
    assert correlations.abs().max() < 0.25  # 256 numbers each: four standard deviations
    many = noise_levels(abar, (16, 64, 64), seed=2).eps
    assert many.mean().abs() < 0.01
    assert many.std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("fractions", [(), (0.0,), (1.0,), (0.2, 1.2), (-0.2,), (float("nan"),)])
def test_levels_outside_0_1_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        noise_levels(SCHEDULES[0][0].alphas_cumprod, SHAPE, fractions)


@pytest.mark.parametrize("kind", [PNDMScheduler, DDIMScheduler])
def test_a_checkpoint_may_name_any_scheduler(kind: Any, tmp_path: Path) -> None:
    # Released checkpoints name samplers; only their betas matter here.
    write_checkpoint(tmp_path)
    kind(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="epsilon",
        steps_offset=1,
    ).save_pretrained(tmp_path / "scheduler")
    expected = np.cumprod(1 - scaled_linear(1000, 0.00085, 0.012))
    abar = read_checkpoint(tmp_path).alphas_cumprod
    np.testing.assert_allclose(abar.numpy(), expected, rtol=2e-5)
