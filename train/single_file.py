"""A Stable Diffusion in one .safetensors file, under the names its authors' code gives the parts.

Such a file holds weights alone. What else a model needs is known: sizes are the family's, and the
tokenizer is CLIP's. Names are turned into diffusers' by diffusers' own converters, and every weight
of a part has to be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dsd_trt.errors import ModelError
from dsd_trt.train.families import FAMILIES, Family, unet_config
from dsd_trt.train.hub import fetch
from dsd_trt.train.skeleton import build_part, build_scheduler

CLIP = "openai/clip-vit-large-patch14"
"""Whose tokenizer every family has."""

_TOKENIZER = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
_UNET = "model.diffusion_model."
# Of OpenCLIP's code; the other text encoders are of transformers'.
_OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": (_UNET,),
    "vae": ("first_stage_model.",),
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}


class SingleFile:
    """Where the parts of a model are read from.

    Attributes:
        path: the file.
        family: what it is.
    """

    def __init__(self, path: Path, family: str | None = None) -> None:
        """Open a file; no weights are read yet.

        Args:
            path: the file.
            family: one of `FAMILIES`; None where the file's tensors tell it.

        Raises:
            ModelError: it is no checkpoint of a known family, or can be of several whose tensors
                are alike.
        """
        self.path = path
        self._shapes = _read_shapes(path)
        self.family: Family = FAMILIES[self._tell_family(family)]

    def __str__(self) -> str:
        return str(self.path)

    def has(self, part: str) -> bool:
        """Whether there is a part of that name."""
        if part == "scheduler":
            return True
        return bool(self._prefix(part.replace("tokenizer", "text_encoder")))

    def config(self, part: str) -> dict[str, Any]:
        """What the part's `config.json` would be."""
        config = self._empty(part).config
        return dict(config) if part in ("unet", "vae") else dict(config.to_dict())

    def read(self, part: str, dtype: torch.dtype) -> Any:
        """Read a part's weights into its module.

        Raises:
            ModelError: the file's weights are not those of the family.
        """
        module = self._empty(part)
        prefix = self._prefix(part)
        with safe_open(self.path, "pt") as file:
            tensors = {
                name: file.get_tensor(name) for name in self._shapes if name.startswith(prefix)
            }
        weights = _convert(tensors, part, prefix, module)
        try:
            module.load_state_dict({k: v.to(dtype) for k, v in weights.items()}, assign=True)
        except RuntimeError as error:
            raise ModelError(
                f"{self.path}: its {part} is none of {self.family.about}: "
                f"{' '.join(str(error).split())}"
            ) from error
        return module

    def tokenizer(self, part: str = "tokenizer") -> CLIPTokenizer:
        """CLIP's tokenizer, padding as the family does.

        Raises:
            ModelError: it is neither beside the file nor in the hub's cache, and the hub cannot be
                reached.
        """
        tower = self.family.text[1 if part.endswith("_2") else 0]
        try:
            tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
                self._clip, pad_token=tower.pad
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"cannot read CLIP's tokenizer in {self._clip}: {error}") from error
        return tokenizer

    def scheduler(self) -> DDPMScheduler:
        """The noise schedule."""
        return build_scheduler(self.family)

    def weight_files(self) -> dict[str, Path]:
        """The file, by its name."""
        return {self.path.name: self.path}

    @cached_property
    def _clip(self) -> Path:
        """Folder of CLIP's tokenizer: "tokenizer" beside the file, or the hub's."""
        beside = self.path.parent / "tokenizer"
        if beside.is_dir():
            return beside
        try:
            return fetch(CLIP, None, _TOKENIZER)
        except ModelError as error:
            raise ModelError(
                f"{self.path} holds no tokenizer: put CLIP's into {beside}, or let it be fetched. "
                f"Tried: {error}"
            ) from error

    def _empty(self, part: str) -> Any:
        is_text = part.startswith("text_encoder")
        return build_part(self.family, part, self.tokenizer(part) if is_text else None)

    def _prefix(self, part: str) -> str:
        """What the names of a part's tensors begin with, "" where there are none."""
        for prefix in _PREFIXES[part]:
            if any(name.startswith(prefix) for name in self._shapes):
                return prefix
        return ""

    def _tell_family(self, name: str | None) -> str:
        widths = {
            shape[1]
            for key, shape in self._shapes.items()
            if key.startswith(_UNET) and key.endswith(".attn2.to_k.weight")
        }
        if len(widths) != 1:
            raise ModelError(
                f"{self.path} is no Stable Diffusion in a single file: there is no cross-attention "
                f'under "{_UNET}"'
            )
        (width,) = widths
        fitting = [n for n, f in FAMILIES.items() if unet_config(f)["cross_attention_dim"] == width]
        if not fitting:
            raise ModelError(f"{self.path} is of no known family: its text states are {width} wide")
        alike = " or ".join(fitting)
        if name is None and len(fitting) > 1:
            raise ModelError(
                f"{self.path} can be {alike}, whose tensors are alike: say which, as in "
                f"{self.path.name}@{fitting[0]}"
            )
        if name is not None and name not in fitting:
            raise ModelError(
                f"{self.path} is no {name}: its text states are {width} wide, as those of {alike}"
            )
        return name or fitting[0]


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, by name."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error


def _convert(
    tensors: dict[str, Tensor], part: str, prefix: str, module: nn.Module
) -> dict[str, Tensor]:
    """Tensors under diffusers' and transformers' names."""
    if part == "unet":
        return dict(convert_ldm_unet_checkpoint(tensors, module.config))
    if part == "vae":
        return dict(convert_ldm_vae_checkpoint(tensors, module.config))
    if prefix in _OPEN_CLIP:
        weights = convert_open_clip_checkpoint(module, tensors, prefix)
    else:
        weights = convert_ldm_clip_checkpoint(tensors)
    if not hasattr(module, "text_model"):  # transformers has flattened one of the two classes
        weights = {name.removeprefix("text_model."): value for name, value in weights.items()}
    # Older files hold the numbers 0 to 76 as a weight.
    return {name: value for name, value in weights.items() if not name.endswith("position_ids")}
