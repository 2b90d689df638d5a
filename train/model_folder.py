"""A Stable Diffusion in diffusers' format: a folder with a folder for each part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dsd_trt.errors import ModelError

_KINDS: Mapping[str, Any] = {
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
}
_VARIANT = "fp16"  # some repositories have their weights under this name alone


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
            ModelError: there is none, or it is not JSON.
        """
        path = self.path / part / "config.json"
        try:
            config: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read {path}: {error}") from error
        return config

    def read(self, part: str, dtype: torch.dtype) -> Any:
        """Read a part's weights into its module.

        Raises:
            ModelError: they are missing, or no weights of such a part.
        """
        folder = self.path / part
        variant = None
        if not (plain := _weights_of(folder, "")) and _weights_of(folder, f".{_VARIANT}"):
            variant = _VARIANT
        if not plain and variant is None:
            raise ModelError(f"{folder} holds no .safetensors weights")
        try:
            return _KINDS[part].from_pretrained(folder, dtype=dtype, variant=variant)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"cannot read the model in {folder}: {error}") from error

    def tokenizer(self, part: str = "tokenizer") -> CLIPTokenizer:
        """Read a tokenizer.

        Raises:
            ModelError: there is none that can be read.
        """
        return self._pretrained(CLIPTokenizer, part)

    def scheduler(self) -> DDPMScheduler:
        """Read the noise schedule.

        Raises:
            ModelError: there is none that can be read.
        """
        return self._pretrained(DDPMScheduler, "scheduler")

    def _pretrained(self, kind: Any, part: str) -> Any:
        try:
            return kind.from_pretrained(self.path / part)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"cannot read {self.path / part}: {error}") from error

    def weight_files(self) -> dict[str, Path]:
        """Every weight file that is read, by its path in the folder."""
        files = [
            path
            for part in _KINDS
            for path in _weights_of(self.path / part, "")
            or _weights_of(self.path / part, f".{_VARIANT}")
        ]
        return {path.relative_to(self.path).as_posix(): path for path in sorted(files)}


def _weights_of(folder: Path, variant: str) -> list[Path]:
    """Weight files of a part, whole or in shards, of one variant."""
    return [
        path
        for path in folder.glob("*.safetensors")
        if (f".{_VARIANT}" in path.name) == bool(variant)
    ]
