"""Checkpoints of a family with random weights, with the shapes and file sizes of real ones.

They allow tests of everything that does not depend on the numbers (export, memory, latency,
agreement between engines), without published weights.
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

_BYTES, _SPECIAL = 512, 2  # numbers of byte tokens and special tokens; all others are merges


def write_random_model(folder: Path, family: Family, seed: int = 0) -> Path:
    """Write a model with random weights in diffusers' format, FP16.

    Args:
        folder: output folder; it must be empty or not exist.
        family: family of Stable Diffusion, which decides all sizes.
        seed: random seed of the weights.

    Raises:
        InputError: the folder is not empty, or the disk has not enough space.
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
        # safetensors makes files that only their owner can read.
        for weights in (folder / name).glob("*.safetensors"):
            weights.chmod((folder / name / "config.json").stat().st_mode)
    build_scheduler(family).save_pretrained(folder / "scheduler")


@torch.no_grad()
def fill(part: nn.Module, generator: torch.Generator) -> None:
    """Fill a module with random weights that keep its activations bounded.

    Norms and biases are not trivial and attention is not uniform, so that a missing or wrong part
    of an exported graph changes the scores.
    """
    for path, module in part.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                noise = 0.1 * noise + (1.0 if name == "weight" else 0.0)
            elif not isinstance(module, nn.Embedding):
                noise /= math.sqrt(weight[0].numel())  # number of inputs
            if path.endswith((".attn2.to_q", ".attn2.to_k")):
                noise *= 2
            weight.copy_(noise)


def clip_size_merges() -> list[tuple[str, str]]:
    """As many merges as CLIP's tokenizer has, of two, three and four letters."""
    return list(islice(_merges(), VOCABULARY - _BYTES - _SPECIAL))


def _merges() -> Iterator[tuple[str, str]]:
    letters, last = ascii_lowercase, [f"{letter}</w>" for letter in ascii_lowercase]
    for length in range(1, 4):
        starts = ["".join(start) for start in product(letters, repeat=length)]
        yield from chain(product(starts, letters), product(starts, last))
