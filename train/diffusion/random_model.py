"""Checkpoints of a family with random weights: every shape and every byte of the real thing.

Only the numbers are not real, so whatever does not depend on them (export, memory, speed, agreement
between engines) can be tried without weights that nobody may copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, islice, product
from pathlib import Path
from string import ascii_lowercase

import torch
from torch import nn

from dsd_trt.errors import InputError
from dsd_trt.files.disk import require_free
from dsd_trt.train.diffusion.clip_tokenizer import write_tokenizer
from dsd_trt.train.diffusion.families import VOCABULARY, Family
from dsd_trt.train.diffusion.skeleton import build_part, build_scheduler
from dsd_trt.train.run.saved_model import saved_model

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
    with saved_model(folder) as unfinished:
        _write_parts(unfinished, family, seed)
    return folder


def _write_parts(folder: Path, family: Family, seed: int) -> None:
    tokenizers = {
        f"text_encoder{suffix}": write_tokenizer(
            folder / f"tokenizer{suffix}", clip_size_merges(), tower.pad
        )
        for tower, suffix in zip(family.text, ("", "_2"), strict=False)
    }
    names = ("unet", "vae", *tokenizers)
    parts = {name: build_part(family, name, tokenizers.get(name)) for name in names}
    size = 2 * sum(weight.numel() for part in parts.values() for weight in part.parameters())
    require_free(folder, size, "the model", "Give a folder on another disk: --out MODEL")
    generator = torch.Generator().manual_seed(seed)
    for name, part in parts.items():
        part.half().to_empty(device="cpu")
        fill(part, generator)
        part.save_pretrained(folder / name)
        part.to("meta")  # one part in memory at a time
        for weights in (folder / name).glob("*.safetensors"):  # for the owner alone until now
            weights.chmod((folder / name / "config.json").stat().st_mode)
    build_scheduler(family).save_pretrained(folder / "scheduler")


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
