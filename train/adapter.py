"""The few-shot adapter on disk: prompts, head weights and calibration, tied to its base model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dsd_trt.errors import ModelError
from dsd_trt.manifest import HeadMode, Resize, ScoreKind, TrainedFor
from dsd_trt.train.prompts import PromptConfig
from dsd_trt.train.scoring_unet import uniform_head_weights

_CONFIG, _WEIGHTS = "adapter.json", "adapter.safetensors"
_FORMAT = 2


@dataclass(frozen=True)
class Adapter:
    """What few-shot training learns.

    Attributes:
        prompt_config: sizes of the prompts; None where there are none.
        prompt_state: state of an `AttentionPrompts`.
        head_mode: where the head weights come from, see `HeadWeights` of the bundle.
        head_weights: w_{l,h} of every cross-attention layer, each (heads,); none are uniform.
        score: which score it was trained for, see `Method` of the bundle.
        denoising_weight: w of that score.
        a: scale of the match probability sigmoid(a s + b).
        b: its offset.
        levels: noise levels it was trained at, and that a and b were fitted for with all layers
            scored; none where they are not known.
        base: sha256 of each weight file of the model it was trained on, as far as known.
        resize: how the images it was trained on became squares, see `Resize`.
        training: how it was trained and what it scored, free-form.
        mode: which mode it was trained for, see `dsd_trt.train.matrix`.
        matrix_a: a of the matrix mode's score.
        matrix_b: b of it.
        merged: low-rank changes of the U-Net's own weights, by "PATH OF A LAYER.up" and ".down".
    """

    prompt_config: PromptConfig | None
    prompt_state: Mapping[str, Tensor]
    head_mode: HeadMode
    head_weights: Sequence[Tensor]
    score: ScoreKind
    denoising_weight: float
    a: float
    b: float
    levels: tuple[float, ...]
    base: Mapping[str, str]
    resize: Resize = "bicubic-stretch"
    training: Mapping[str, Any] = field(default_factory=dict)
    mode: TrainedFor = "pair"
    matrix_a: float = 1.0
    matrix_b: float = 0.0
    merged: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `adapter.safetensors` and `adapter.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"prompts.{name}": value for name, value in self.prompt_state.items()}
        tensors |= {f"merged.{name}": value for name, value in self.merged.items()}
        for layer, weights in enumerate(self.head_weights):
            tensors[f"head_weights.{layer}"] = weights
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / _WEIGHTS)
        config = {
            "format": _FORMAT,
            "prompts": self.prompt_config and asdict(self.prompt_config),
            "head_mode": self.head_mode,
            "score": self.score,
            "denoising_weight": self.denoising_weight,
            "a": self.a,
            "b": self.b,
            "mode": self.mode,
            "matrix_a": self.matrix_a,
            "matrix_b": self.matrix_b,
            "levels": list(self.levels),
            "resize": self.resize,
            "base": dict(self.base),
            "training": dict(self.training),
        }
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read an adapter, FP32.

        Raises:
            ModelError: not an adapter folder, or not one this version reads.
        """
        try:
            config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            tensors = {name: t.float() for name, t in load_file(folder / _WEIGHTS).items()}
            if config["format"] != _FORMAT:
                raise ModelError(f"{folder / _CONFIG}: format {config['format']} is not {_FORMAT}")
            heads = [name for name in tensors if name.startswith("head_weights.")]
            return cls(
                prompt_config=config["prompts"] and PromptConfig(**config["prompts"]),
                prompt_state=_under("prompts.", tensors),
                head_mode=config["head_mode"],
                head_weights=[tensors[f"head_weights.{i}"] for i in range(len(heads))],
                score=config["score"],
                denoising_weight=float(config["denoising_weight"]),
                a=float(config["a"]),
                b=float(config["b"]),
                levels=tuple(config["levels"]),
                resize=config.get("resize", "bicubic-stretch"),
                base=config["base"],
                training=config["training"],
                mode=config.get("mode", "pair"),
                matrix_a=float(config.get("matrix_a", 1.0)),
                matrix_b=float(config.get("matrix_b", 0.0)),
                merged=_under("merged.", tensors),
            )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ModelError(f"cannot read an adapter from {folder}: {error}") from error

    def require_base(self, weight_hashes: Mapping[str, str]) -> None:
        """Refuse to be put on a model it was not trained on.

        Raises:
            ModelError: names the first weight file that differs.
        """
        for file, expected in self.base.items():
            if weight_hashes.get(file) != expected:
                raise ModelError(
                    f"the adapter was trained on another model: {file} differs. Train one for "
                    "this model, or export without --adapter"
                )

    def require_score(self, score: ScoreKind) -> None:
        """Refuse to serve another score than the one it was trained for.

        Raises:
            ModelError: names both.
        """
        if score != self.score and self.score != "released":  # which has its own layers as well
            raise ModelError(
                f'the adapter was trained for the score "{self.score}", not "{score}": leave out '
                "--score, or train an adapter for it"
            )

    def merge_into(self, unet: nn.Module) -> None:
        """Add the low-rank changes up @ down to the weights of a U-Net, in place.

        Raises:
            ModelError: the U-Net has no such layer, or one of another size.
        """
        for name in self.merged:
            layer, _, part = name.rpartition(".")
            if part == "down":
                continue
            up, down = self.merged[name], self.merged[f"{layer}.down"]
            try:
                weight = unet.get_parameter(f"{layer}.weight")
            except AttributeError as error:
                raise ModelError(f"the adapter changes {layer}, which the model lacks") from error
            if weight.shape != (len(up), down.shape[1]):
                raise ModelError(
                    f"the adapter changes {layer}, {tuple(weight.shape)} in this model, by a "
                    f"matrix of {(len(up), down.shape[1])}: it is for another model"
                )
            if not weight.is_meta:
                with torch.no_grad():
                    weight.copy_(weight.float() + up @ down)

    def weights_of(self, layers: Sequence[int], heads: Sequence[int]) -> list[Tensor]:
        """Head weights of the scored layers, made to sum to 1 again.

        Raises:
            ModelError: the adapter has no weights for one of the layers.
        """
        if not self.head_weights:
            return uniform_head_weights(heads)
        if max(layers) >= len(self.head_weights):
            raise ModelError(
                f"the adapter weights {len(self.head_weights)} layers; layer {max(layers)} is not "
                "among them"
            )
        chosen = [self.head_weights[layer] for layer in layers]
        if [len(weights) for weights in chosen] != list(heads):
            raise ModelError("the adapter's head weights do not fit the model's heads")
        total = torch.cat(chosen).sum()
        return [weights / total for weights in chosen]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def resize_of(adapter: Adapter | None, asked: Resize | None = None) -> Resize:
    """How images become squares: as asked for, else as the adapter's did, else at once."""
    return asked or (adapter.resize if adapter else "bicubic-stretch")
