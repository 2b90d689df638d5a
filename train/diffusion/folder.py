"""A Stable Diffusion checkpoint in diffusers' format: a folder with one subfolder per part."""

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
from dsd_trt.train.diffusion.weight_files import (
    DIFFUSERS,
    TRANSFORMERS,
    find_weights,
    read_json,
    require_class,
)
from dsd_trt.train.diffusion.weight_names import current_names
from dsd_trt.train.diffusion.weights import (
    Stored,
    check_names,
    check_numbers,
    check_types,
    fill_module,
    read_headers,
    read_tensors,
)

_TEXT_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")


@dataclass(frozen=True)
class _Kind:
    """Class and file names of a part.

    Attributes:
        module: class of the part's module.
        weights: name of the weight files, without variant and extension.
        field: field of `config.json` that names the part's class.
        known: supported values of that field.
    """

    module: Any
    weights: str
    field: str
    known: tuple[str, ...]


_KINDS: Mapping[str, _Kind] = {
    "vae": _Kind(AutoencoderKL, DIFFUSERS, "_class_name", ("AutoencoderKL",)),
    "text_encoder": _Kind(CLIPTextModel, TRANSFORMERS, "model_type", ("clip_text_model",)),
    "text_encoder_2": _Kind(
        CLIPTextModelWithProjection, TRANSFORMERS, "model_type", ("clip_text_model",)
    ),
    "unet": _Kind(UNet2DConditionModel, DIFFUSERS, "_class_name", ("UNet2DConditionModel",)),
}


class ModelFolder:
    """A model in a folder, whose parts are read on demand.

    Attributes:
        path: folder of the model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def has(self, part: str) -> bool:
        """Whether the folder has a part of that name."""
        return (self.path / part).is_dir()

    def config(self, part: str) -> dict[str, Any]:
        """Content of a part's `config.json`.

        Raises:
            ModelError: the file is missing, is not JSON, or names another class.
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
        """Compare the headers of a part's weight files with its configuration.

        Raises:
            ModelError: a weight is missing, unknown, of another shape or not floating point.
        """
        self._headers(part)

    def check_numbers(self, part: str) -> None:
        """Check that all of a part's weights are finite.

        Raises:
            ModelError: `check` fails, or a weight is NaN or infinite.
        """
        check_numbers(self._headers(part)[1], str(self.path / part), part)

    def read(self, part: str, dtype: torch.dtype) -> Any:
        """Read a part's weights into its module.

        Args:
            part: name of the part: "unet", "vae", "text_encoder" or "text_encoder_2".
            dtype: type that the weights are converted to.

        Raises:
            ModelError: `check` fails, or a weight is NaN, infinite or too large for `dtype`.
        """
        module, headers = self._headers(part)
        weights = current_names(part, dict(read_tensors(headers)), module, str(self.path / part))
        fill_module(module, weights, dtype, str(self.path / part), part)
        return module

    def _headers(self, part: str) -> tuple[Any, dict[str, Stored]]:
        """The part's module on the meta device, and the headers of its weights."""
        where = str(self.path / part)
        module = _empty(part, self.config(part), where)
        headers = read_headers(self.weights(part))
        named = current_names(part, headers, module, where)
        check_names(module, named, where, part)
        check_types(named, where, part)
        used = set(map(id, named.values()))
        return module, {name: tensor for name, tensor in headers.items() if id(tensor) in used}

    def weights(self, part: str) -> list[Path]:
        """Weight files of a part.

        Raises:
            ModelError: there are no weight files, or a shard is missing.
        """
        name = _KINDS[part].weights
        return find_weights(self.path / part, name, index_first=name == DIFFUSERS)

    def tokenizer(self, part: str = "tokenizer") -> CLIPTokenizer:
        """Read a tokenizer.

        Raises:
            ModelError: the tokenizer is missing, unreadable or has no padding token.
        """
        tokenizer = read_tokenizer(self.path / part)
        require_padding(self.path / part)
        return tokenizer

    def scheduler(self) -> Any:
        """Read the noise schedule, see `read_schedule`.

        Raises:
            ModelError: the schedule is missing, unreadable or not like Stable Diffusion's.
        """
        config = read_json(self.path / "scheduler" / "scheduler_config.json")
        index = self.path / "model_index.json"
        named = read_json(index).get("scheduler") if index.is_file() else None
        # As in diffusers' pipelines, the class in model_index.json takes precedence.
        name = named[1] if isinstance(named, list) and len(named) == 2 else None
        try:
            return read_schedule(config, name)
        except ValueError as error:
            raise ModelError(f"{self.path}, scheduler: {error}") from error

    def weight_files(self, parts: Sequence[str]) -> dict[str, Path]:
        """Weight files of some parts, by their paths relative to the folder.

        Raises:
            ModelError: a part has no weight files, or a shard is missing.
        """
        files = [path for part in parts for path in self.weights(part)]
        return {path.relative_to(self.path).as_posix(): path for path in sorted(files)}


def _empty(part: str, config: dict[str, Any], where: str) -> Any:
    """A part's module on the meta device."""
    kind = _KINDS[part].module
    try:
        with init_empty_weights(include_buffers=False):
            if part.startswith("text_encoder"):
                return kind(CLIPTextConfig.from_dict(config))
            return kind.from_config(config)
    except Exception as error:  # a damaged configuration may raise anything in the libraries
        raise ModelError(
            f"{where}/config.json describes no {kind.__name__}: {' '.join(str(error).split())}"
        ) from error
