"""A Stable Diffusion in diffusers' format: a folder with a folder for each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dsd_trt.errors import ModelError
from dsd_trt.train.diffusion.clip_tokenizer import read_tokenizer, require_padding
from dsd_trt.train.diffusion.schedule import read_schedule
from dsd_trt.train.diffusion.weight_names import current_names
from dsd_trt.train.diffusion.weights import (
    Stored,
    check_names,
    check_numbers,
    check_types,
    fill_module,
    find_weights,
    read_headers,
    read_json,
    read_tensors,
    require_class,
)

_TEXT_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")
_DIFFUSERS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class _Kind:
    """What a part has to be.

    Attributes:
        module: its class.
        weights: what its files are called.
        field: of its `config.json`, which names its class.
        known: values of that field that are read.
    """

    module: Any
    weights: str
    field: str
    known: tuple[str, ...]


_KINDS: Mapping[str, _Kind] = {
    "vae": _Kind(AutoencoderKL, _DIFFUSERS, "_class_name", ("AutoencoderKL",)),
    "text_encoder": _Kind(CLIPTextModel, "model", "model_type", ("clip_text_model",)),
    "text_encoder_2": _Kind(
        CLIPTextModelWithProjection, "model", "model_type", ("clip_text_model",)
    ),
    "unet": _Kind(UNet2DConditionModel, _DIFFUSERS, "_class_name", ("UNet2DConditionModel",)),
}

WEIGHT_NAMES: Mapping[str, str] = {part: kind.weights for part, kind in _KINDS.items()}
"""What the weight files of each part are called, without variant and ending."""


class ModelFolder:
    """Where the parts of a model are read from.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def has(self, part: str) -> bool:
        """Whether there is a part of that name."""
        return (self.path / part).is_dir()

    def config(self, part: str) -> dict[str, Any]:
        """The part's `config.json`.

        Raises:
            ModelError: there is none, it is not JSON, or it is that of another class.
        """
        path, kind = self.path / part / "config.json", _KINDS[part]
        config = read_json(path)
        require_class(config.get(kind.field), kind.known, path, kind.field)
        if part.startswith("text_encoder"):
            named = config.get("architectures") or []
            for name in named if isinstance(named, list) else [named]:
                require_class(name, _TEXT_CLASSES, path, "architectures")
        return config

    def check(self, part: str) -> None:
        """Compare a part's weights with its configuration, in no time: their numbers are not read.

        Raises:
            ModelError: a weight is missing, unknown, of another shape or of no floating type.
        """
        self._headers(part)

    def check_numbers(self, part: str) -> None:
        """Look at every number of a part's weights.

        Raises:
            ModelError: what `check` refuses, or a weight that is not finite.
        """
        check_numbers(self._headers(part)[1], str(self.path / part), part)

    def read(self, part: str, dtype: torch.dtype) -> Any:
        """Read a part's weights into its module.

        Raises:
            ModelError: what `check` refuses, or a weight that is not finite.
        """
        module, headers = self._headers(part)
        weights = current_names(part, dict(read_tensors(headers)), module, str(self.path / part))
        fill_module(module, weights, dtype, str(self.path / part), part)
        return module

    def _headers(self, part: str) -> tuple[Any, dict[str, Stored]]:
        """The part's module without weights, and what its files say of theirs."""
        where = str(self.path / part)
        module = _empty(part, self.config(part), where)
        headers = read_headers(self.weights(part))
        named = current_names(part, headers, module, where)
        check_names(module, named, where, part)
        check_types(named, where, part)
        used = set(map(id, named.values()))
        return module, {name: tensor for name, tensor in headers.items() if id(tensor) in used}

    def weights(self, part: str) -> list[Path]:
        """The files that the part's weights are read from.

        Raises:
            ModelError: there are none, or some are missing.
        """
        name = _KINDS[part].weights
        return find_weights(self.path / part, name, index_first=name == _DIFFUSERS)

    def tokenizer(self, part: str = "tokenizer") -> CLIPTokenizer:
        """Read a tokenizer.

        Raises:
            ModelError: there is none that can be read.
        """
        tokenizer = read_tokenizer(self.path / part)
        require_padding(self.path / part)
        return tokenizer

    def scheduler(self) -> Any:
        """Read the noise schedule, see `read_schedule`.

        Raises:
            ModelError: there is none that can be read, or it is not of Stable Diffusion's kind.
        """
        config = read_json(self.path / "scheduler" / "scheduler_config.json")
        index = self.path / "model_index.json"
        named = read_json(index).get("scheduler") if index.is_file() else None
        # diffusers' pipelines take the class that the index names.
        name = named[1] if isinstance(named, list) and len(named) == 2 else None
        try:
            return read_schedule(config, name)
        except ValueError as error:
            raise ModelError(f"{self.path}, scheduler: {error}") from error

    def weight_files(self, parts: Sequence[str]) -> dict[str, Path]:
        """The files that some parts' weights are read from, by their paths in the folder.

        Raises:
            ModelError: a part has none.
        """
        files = [path for part in parts for path in self.weights(part)]
        return {path.relative_to(self.path).as_posix(): path for path in sorted(files)}


def _empty(part: str, config: dict[str, Any], where: str) -> Any:
    """A part without weights."""
    kind = _KINDS[part].module
    try:
        with init_empty_weights(include_buffers=False):
            if part.startswith("text_encoder"):
                return kind(CLIPTextConfig.from_dict(config))
            return kind.from_config(config)
    except Exception as error:  # whatever the libraries' code stumbles over in a configuration
        raise ModelError(
            f"{where}/config.json describes no {kind.__name__}: {' '.join(str(error).split())}"
        ) from error
