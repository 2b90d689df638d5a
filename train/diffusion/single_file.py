"""A Stable Diffusion in one .safetensors file, under the names its authors' code gives the parts.

Such a file holds weights alone. What else a model needs is known: sizes are the family's, and the
tokenizer is CLIP's. Names are turned into diffusers' by diffusers' own converters, and every weight
of a part has to be there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dsd_trt.errors import ModelError
from dsd_trt.train.diffusion.clip_tokenizer import read_tokenizer
from dsd_trt.train.diffusion.families import FAMILIES, Family, unet_config
from dsd_trt.train.diffusion.file_header import read_file_header
from dsd_trt.train.diffusion.hub import fetch
from dsd_trt.train.diffusion.skeleton import build_part, build_scheduler
from dsd_trt.train.diffusion.weight_names import current_names, is_computed
from dsd_trt.train.diffusion.weights import (
    Stored,
    check_names,
    check_numbers,
    check_types,
    fill_module,
    read_headers,
    read_tensors,
)

CLIP = "openai/clip-vit-large-patch14"
"""Whose tokenizer every family has."""

_TOKENIZER = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
_UNET = "model.diffusion_model."
# Of OpenCLIP's code; the other text encoders are of transformers'.
_OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
_TO_K = re.compile(r"\.attn2\.to_k\.(base_layer\.)?weight$")  # the second in PEFT's layers
_COPIED = re.compile(r"\.attn\.in_proj_(weight|bias)$")
# What is left out because no part needs it: the rest of OpenCLIP, the last of its layers in Stable
# Diffusion 2, and the VAE's training loss.
_EXPENDABLE = re.compile(
    r"(cond_stage_model|conditioner\.embedders\.1)\.model\."
    r"(text_projection|logit_scale|logit_bias|attn_mask|visual\..*)$"
    r"|cond_stage_model\.model\.transformer\.resblocks\.23\."
    r"|first_stage_model\.loss\."
)
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
        self._headers = read_headers([path])
        header = read_file_header(path)
        try:
            published = FAMILIES[self._tell_family(family, header.families())]
            self.family: Family = header.tell(published)
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from error
        # Layers of the text encoder whose states are not used.
        self._unused = tuple(
            f".encoder.layers.{layer}."
            for layer in range(self.family.text[0].layers, published.text[0].layers)
        )

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

    def check(self, part: str) -> None:
        """Compare a part's weights with the family's, in no time: their numbers are not read.

        Raises:
            ModelError: a weight is missing, unknown, of another shape or of no floating type.
        """
        self._checked(part)

    def check_numbers(self, part: str) -> None:
        """Look at every number of a part's weights.

        Raises:
            ModelError: what `check` refuses, or a weight that is not finite.
        """
        check_numbers(self._checked(part)[1], self._where, part)

    def read(self, part: str, dtype: torch.dtype) -> Any:
        """Read a part's weights into its module.

        Raises:
            ModelError: what `check` refuses, or a weight that is not finite.
        """
        module, headers = self._checked(part)
        weights = self._convert(dict(read_tensors(headers)), part, module)
        named = current_names(part, weights, module, self._where)
        fill_module(module, named, dtype, self._where, part)
        return module

    def _checked(self, part: str) -> tuple[Any, dict[str, Stored]]:
        """The part's module without weights, and what the file says of its weights."""
        module, prefix = self._empty(part), self._prefix(part)
        headers = {
            name: tensor
            for name, tensor in self._headers.items()
            if name.startswith(prefix) and not is_computed(name)
        }
        if part == "text_encoder":
            headers = {
                name: tensor
                for name, tensor in headers.items()
                if not any(layer in name for layer in self._unused)
            }
        check_types(headers, self._where, part)
        shapes = {name: tensor.empty() for name, tensor in headers.items()}
        weights = self._convert(dict(shapes), part, module)
        left_out = {name: shapes[name] for name in _left_out(shapes, weights)}
        named = current_names(part, weights, module, self._where)
        check_names(module, named | left_out, self._where, part)
        return module, headers

    def _convert(
        self, tensors: dict[str, Tensor], part: str, module: nn.Module
    ) -> dict[str, Tensor]:
        """Tensors under diffusers' and transformers' names."""
        prefix = self._prefix(part)
        try:
            if part == "unet":
                weights = convert_ldm_unet_checkpoint(tensors, module.config)
            elif part == "vae":
                weights = convert_ldm_vae_checkpoint(tensors, module.config)
            elif prefix in _OPEN_CLIP:
                weights = convert_open_clip_checkpoint(module, tensors, prefix)
            else:
                weights = convert_ldm_clip_checkpoint(tensors)
        except KeyError as error:  # the only weights that a converter asks for by name
            raise ModelError(f"{self._where}: {part} lacks {prefix}{error.args[0]}") from error
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{self._where}: {part} cannot be converted: {error}") from error
        return {name: weight for name, weight in weights.items() if weight is not None}

    @property
    def _where(self) -> str:
        return f"{self.path}, read as {self.family.about}"

    def tokenizer(self, part: str = "tokenizer") -> CLIPTokenizer:
        """CLIP's tokenizer, padding as the family does.

        Raises:
            ModelError: it is neither beside the file nor in the hub's cache, and the hub cannot be
                reached.
        """
        tower = self.family.text[1 if part.endswith("_2") else 0]
        return read_tokenizer(self._clip, pad_token=tower.pad)

    def scheduler(self) -> DDPMScheduler:
        """The noise schedule."""
        return build_scheduler(self.family)

    def weight_files(self, parts: Sequence[str]) -> dict[str, Path]:
        """The file, by its name, whichever parts are read."""
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
            if any(name.startswith(prefix) for name in self._headers):
                return prefix
        return ""

    def _tell_family(self, name: str | None, told: Sequence[str]) -> str:
        """The family's name.

        Args:
            name: what the user says, None if nothing.
            told: those it can be by what the file says.
        """
        widths = {
            tensor.shape[-1]
            for key, tensor in self._headers.items()
            if key.startswith(_UNET) and _TO_K.search(key) and tensor.shape
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
        if not (both := [n for n in fitting if n in told]):
            raise ModelError(
                f"{self.path} says that it is {' or '.join(told)} (modelspec.architecture), but "
                f"its text states are {width} wide, as those of {alike}"
            )
        if name is None and len(both) == 1:
            return both[0]
        if name is None and len(fitting) > 1:
            raise ModelError(
                f"{self.path} can be {alike}, whose tensors are alike: say which, as in "
                f"{self.path.name}@{fitting[0]}"
            )
        if name is not None and name not in fitting:
            raise ModelError(
                f"{self.path} is no {name}: its text states are {width} wide, as those of {alike}"
            )
        if name is not None and name not in told:
            raise ModelError(
                f"{self.path} is no {name}: it says that it is {' or '.join(told)} "
                "(modelspec.architecture)"
            )
        return name or fitting[0]


def _left_out(sources: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Tensors that a converter dropped without a word, by the names they have in the file."""
    # A converter hands a tensor on, or takes a view of it, or makes copies (`_COPIED`).
    taken = {id(tensor) for tensor in weights.values()}
    taken |= {id(tensor._base) for tensor in weights.values()}
    return [
        name
        for name, tensor in sources.items()
        if id(tensor) not in taken and not _COPIED.search(name) and not _EXPENDABLE.match(name)
    ]
