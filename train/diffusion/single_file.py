"""A Stable Diffusion checkpoint in one .safetensors file, under the original code's names.

Such a file holds weights alone. Sizes are those of the family, and the tokenizer is CLIP's. Names
are converted by diffusers' own converters, and no weight of a part may be missing.
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
"""Repository of the tokenizer that all families share."""

_TOKENIZER = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
_UNET = "model.diffusion_model."
# Prefixes of text encoders in OpenCLIP's format; the others are in transformers'.
_OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
_TO_K = re.compile(r"\.attn2\.to_k\.(base_layer\.)?weight$")  # base_layer in PEFT's layers
_COPIED = re.compile(r"\.attn\.in_proj_(weight|bias)$")
# Weights that no part needs: the rest of OpenCLIP, its last layer in Stable Diffusion 2, and the
# VAE's training loss.
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
    """A model in a single file, whose parts are read on demand.

    Attributes:
        path: checkpoint with the weight names of the original code.
        family: family of the model, with the changes that the file's metadata specifies.
    """

    def __init__(self, path: Path, family: str | None = None) -> None:
        """Open a file; no weights are read yet.

        Args:
            path: checkpoint with the weight names of the original code.
            family: name of the family, one of `FAMILIES`; None derives it from the tensors.

        Raises:
            ModelError: the file is not a checkpoint of a known family, or could be of several.
        """
        self.path = path
        self._headers = read_headers([path])
        header = read_file_header(path)
        try:
            published = FAMILIES[self._find_family(family, header.families())]
            self.family: Family = header.specialise(published)
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from error
        # Layers of the text encoder whose output is not used.
        self._unused = tuple(
            f".encoder.layers.{layer}."
            for layer in range(self.family.text[0].layers, published.text[0].layers)
        )

    def __str__(self) -> str:
        return str(self.path)

    def has(self, part: str) -> bool:
        """Whether the file has a part of that name."""
        if part == "scheduler":
            return True
        return bool(self._prefix(part.replace("tokenizer", "text_encoder")))

    def config(self, part: str) -> dict[str, Any]:
        """Configuration of a part, as its `config.json` would have it."""
        config = self._empty(part).config
        return dict(config) if part in ("unet", "vae") else dict(config.to_dict())

    def check(self, part: str) -> None:
        """Compare the headers of a part's weights with the family's module.

        Raises:
            ModelError: a weight is missing, unknown, of another shape or not floating point.
        """
        self._checked(part)

    def check_numbers(self, part: str) -> None:
        """Check that all of a part's weights are finite.

        Raises:
            ModelError: `check` fails, or a weight is NaN or infinite.
        """
        check_numbers(self._checked(part)[1], self._where, part)

    def read(self, part: str, dtype: torch.dtype) -> Any:
        """Read a part's weights into its module.

        Args:
            part: name of the part: "unet", "vae", "text_encoder" or "text_encoder_2".
            dtype: type that the weights are converted to.

        Raises:
            ModelError: `check` fails, or a weight is NaN, infinite or too large for `dtype`.
        """
        module, headers = self._checked(part)
        weights = self._convert(dict(read_tensors(headers)), part, module)
        named = current_names(part, weights, module, self._where)
        fill_module(module, named, dtype, self._where, part)
        return module

    def _checked(self, part: str) -> tuple[Any, dict[str, Stored]]:
        """The part's module on the meta device, and the headers of its weights."""
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
        """Rename tensors to diffusers' or transformers' names.

        Raises:
            ModelError: a weight that the converter needs is missing or misshapen.
        """
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
        except KeyError as error:  # a weight that the converter requires by name
            raise ModelError(f"{self._where}: {part} lacks {prefix}{error.args[0]}") from error
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{self._where}: {part} cannot be converted: {error}") from error
        return {name: weight for name, weight in weights.items() if weight is not None}

    @property
    def _where(self) -> str:
        return f"{self.path}, read as {self.family.about}"

    def tokenizer(self, part: str = "tokenizer") -> CLIPTokenizer:
        """CLIP's tokenizer, with the family's padding token.

        Raises:
            ModelError: the tokenizer is neither beside the file nor in the hub's cache, and the
                hub cannot be reached.
        """
        tower = self.family.text[1 if part.endswith("_2") else 0]
        return read_tokenizer(self._clip, pad_token=tower.pad)

    def scheduler(self) -> DDPMScheduler:
        """The family's noise schedule."""
        return build_scheduler(self.family)

    def weight_files(self, parts: Sequence[str]) -> dict[str, Path]:
        """The file by its name, for any parts."""
        return {self.path.name: self.path}

    @cached_property
    def _clip(self) -> Path:
        """Folder of CLIP's tokenizer: "tokenizer" beside the file, else the hub's cache."""
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
        """Prefix of the names of a part's tensors; "" if the file has none."""
        for prefix in _PREFIXES[part]:
            if any(name.startswith(prefix) for name in self._headers):
                return prefix
        return ""

    def _find_family(self, name: str | None, told: Sequence[str]) -> str:
        """Name of the file's family.

        Args:
            name: name given by the user; None derives it from the tensors.
            told: families that the file's metadata allows.

        Raises:
            ModelError: the file is of no known family, could be of several, or contradicts `name`.
        """
        widths = {
            tensor.shape[-1]
            for key, tensor in self._headers.items()
            if key.startswith(_UNET) and _TO_K.search(key) and tensor.shape
        }
        if len(widths) != 1:
            raise ModelError(
                f"{self.path} is not a Stable Diffusion checkpoint in a single file: there is no "
                f'cross-attention under "{_UNET}"'
            )
        (width,) = widths
        fitting = [n for n, f in FAMILIES.items() if unet_config(f)["cross_attention_dim"] == width]
        if not fitting:
            raise ModelError(f"{self.path} is of no known family: its text states are {width} wide")
        of_width = " or ".join(fitting)
        if not (both := [n for n in fitting if n in told]):
            raise ModelError(
                f"{self.path} says that it is {' or '.join(told)} (modelspec.architecture), but "
                f"its text states are {width} wide, as those of {of_width}"
            )
        if name is None:
            if len(both) == 1:
                return both[0]
            raise ModelError(
                f"{self.path} can be {' or '.join(both)}, whose tensors are alike: name one, as in "
                f"{self.path.name}@{both[0]}"
            )
        if name not in fitting:
            raise ModelError(
                f"{self.path} is no {name}: its text states are {width} wide, as those of "
                f"{of_width}"
            )
        if name not in told:
            raise ModelError(
                f"{self.path} is no {name}: it says that it is {' or '.join(told)} "
                "(modelspec.architecture)"
            )
        return name


def _left_out(sources: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Names in the file of tensors that a converter dropped silently."""
    # A converter returns a tensor itself, a view of it, or copies of parts of it (`_COPIED`).
    taken = {id(tensor) for tensor in weights.values()}
    taken |= {id(tensor._base) for tensor in weights.values()}
    return [
        name
        for name, tensor in sources.items()
        if id(tensor) not in taken and not _COPIED.search(name) and not _EXPENDABLE.match(name)
    ]
