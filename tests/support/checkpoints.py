"""Tiny Stable Diffusion folders with random weights, written in a second.

Queries and keys are scaled up until attention is no longer uniform, so that scores differ by more
than rounding errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from dsd_trt.bundle.method import HeadMode, ScoreKind
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.question import Question
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.choices import PromptConfig
from dsd_trt.train.scoring.prompts import AttentionPrompts
from dsd_trt.train.scoring.updates import LowRankUpdates
from dsd_trt.train.shapes.tokenizer import build_tokenizer

LAYERS = 6  # cross-attention layers: one in the down blocks, one in the middle, four up
HEADS = 2
TEXT_WIDTH = 32


def write_checkpoint(
    folder: Path, *, seed: int = 0, linear: bool = True, force_upcast: bool = False
) -> Path:
    """Write a checkpoint of 32 x 32 pixels and latents (4, 8, 8), with weights rounded to FP16.

    Args:
        folder: folder of the checkpoint to write.
        seed: seed of the random weights.
        linear: whether projections around attention are linear as in SD 2.x, instead of
            convolutions as in SD 1.x.
        force_upcast: whether the VAE's configuration asks for FP32.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(folder / "tokenizer")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=0.9,
        force_upcast=force_upcast,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=HEADS,  # diffusers' name for the number of heads
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
        use_linear_projection=linear,
    )
    for name, parameter in unet.named_parameters():
        if ".attn2.to_q." in name or ".attn2.to_k." in name:
            parameter.data *= 4
    for name, part in (("vae", vae), ("text_encoder", text_encoder), ("unet", unet)):
        _randomise_norms(part)
        part.half().save_pretrained(folder / name)
    DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction").save_pretrained(
        folder / "scheduler"
    )
    return folder


def write_adapter(
    folder: Path,
    checkpoint: Path,
    *,
    seed: int = 1,
    head_mode: HeadMode = "learned",
    score: ScoreKind = "attention",
    update_rank: int = 0,
) -> Path:
    """Write an adapter with random prompts, mapping network, head weights and updates."""
    torch.manual_seed(seed)
    config = PromptConfig(rank=2, hidden=8, latent_channels=4)
    prompts = AttentionPrompts([32] * LAYERS, TEXT_WIDTH, config)
    for parameter in prompts.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    weights = torch.rand(LAYERS, HEADS) + 0.5
    base = read_checkpoint(checkpoint)
    merged = {}
    if update_rank:
        updates = LowRankUpdates(base.unet, update_rank)
        for up in updates.up:
            up.data += 0.2 * torch.randn(up.shape)
        merged = updates.merged()
    Adapter(
        prompt_config=config,
        prompt_state=prompts.state_dict(),
        head_mode=head_mode,
        head_weights=list(weights / weights.sum()),
        score=score,
        denoising_weight=0.7,
        a=12.0,
        b=-3.0,
        levels=(0.2, 0.8),
        base=base.weight_hashes,
        merged=merged,
    ).save(folder)
    return folder


def picture_questions(texts: Sequence[str]) -> list[Question]:
    """Per text a question with a random 32 x 32 image; the previous text is the negative one."""
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in texts]
    return [
        Question("text", ((picture, texts[i - 1]), (picture, texts[i])), 1, f"picture {i}")
        for i, picture in enumerate(pictures)
    ]


def _randomise_norms(module: nn.Module) -> None:
    """Randomise norms and biases: fresh ones are ones and zeros, which hides a lost one."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
