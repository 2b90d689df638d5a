"""Checkpoints of a family with random weights: every shape and every byte of the real thing.

Only the numbers are not real, so whatever does not depend on them (export, memory, speed, agreement
between engines) can be tried without weights that nobody may copy.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from itertools import chain, islice, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dsd_trt.errors import InputError
from dsd_trt.train.clip_tokenizer import write_tokenizer
from dsd_trt.train.families import (
    VOCABULARY,
    Family,
    TextTower,
    text_config,
    unet_config,
    vae_config,
)

_BYTES, _SPECIAL = 512, 2  # of the tokens; the others are merges


def write_random_model(folder: Path, family: Family, seed: int = 0) -> Path:
    """Write a model in diffusers' format, FP16.

    Args:
        folder: to be written; must not exist, or be empty.
        family: of which family.
        seed: of the weights.

    Raises:
        InputError: the folder holds something, or the disk has no room.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; give another --out")
    with torch.device("meta"):  # no memory yet: the largest has 3.5 G weights
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**unet_config(family)),
            "vae": AutoencoderKL(**vae_config(family)),
        }
    folder.mkdir(parents=True, exist_ok=True)
    for tower, suffix in zip(family.text, ("", "_2"), strict=False):
        tokenizer = write_tokenizer(folder / f"tokenizer{suffix}", clip_size_merges(), tower.pad)
        config = CLIPTextConfig(
            **text_config(tower),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.device("meta"):
            parts[f"text_encoder{suffix}"] = _text_encoder(tower, config)
    size = 2 * sum(weight.numel() for part in parts.values() for weight in part.parameters())
    if (free := shutil.disk_usage(folder).free) < size:
        raise InputError(
            f"the model takes {size / 1e9:.1f} GB, and {folder} has room for {free / 1e9:.1f} GB"
        )
    generator = torch.Generator().manual_seed(seed)
    for name, part in parts.items():
        part.half().to_empty(device="cpu")
        fill(part, generator)
        part.save_pretrained(folder / name)
        part.to("meta")  # one part in memory at a time
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=family.prediction,
        clip_sample=False,
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@torch.no_grad()
def fill(part: nn.Module, generator: torch.Generator) -> None:
    """Fill a module with weights that keep its activations in bounds.

    Norms and biases are not at rest, and attention has preferences: a part that a graph lost, or a
    wrong one, is to be seen in its scores.
    """
    for path, module in part.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                noise = 0.1 * noise + (1.0 if name == "weight" else 0.0)
            elif not isinstance(module, nn.Embedding):
                noise /= math.sqrt(weight[0].numel())  # over the inputs
            if path.endswith((".attn2.to_q", ".attn2.to_k")):
                noise *= 2
            weight.copy_(noise)


def clip_size_merges() -> list[tuple[str, str]]:
    """As many merges as CLIP has: two letters, then three, then four at a word's end."""
    return list(islice(_merges(), VOCABULARY - _BYTES - _SPECIAL))


def _merges() -> Iterator[tuple[str, str]]:
    letters, last = ascii_lowercase, [f"{letter}</w>" for letter in ascii_lowercase]
    for length in range(1, 4):
        starts = ["".join(start) for start in product(letters, repeat=length)]
        yield from chain(product(starts, letters), product(starts, last))


def _text_encoder(tower: TextTower, config: CLIPTextConfig) -> nn.Module:
    kind = CLIPTextModel if tower.projection is None else CLIPTextModelWithProjection
    encoder: nn.Module = kind(config)
    return encoder
