"""The few-shot adapter on disk: prompts, head weights and calibration, tied to its base model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dsd_trt.errors import ModelError
from dsd_trt.files import write_whole
from dsd_trt.manifest import HeadMode, Resize, ScoreKind, TrainedFor
from dsd_trt.schema import parse_json
from dsd_trt.train.prompts import PromptConfig
from dsd_trt.train.scoring_unet import uniform_head_weights
from dsd_trt.train.weights import is_finite

_CONFIG, _WEIGHTS = "adapter.json", "adapter.safetensors"
_NEXT_WEIGHTS = f".{_WEIGHTS}.next"
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
        """Write `adapter.safetensors` and `adapter.json`, which has the other's sha256.

        The moment the adapter changes is the replacement of `adapter.json`: until then the old
        weights are there under their name, and from then on the new ones, be it under that name or
        under `_NEXT_WEIGHTS`.

        Raises:
            DsdError: the disk is full, or the like; the adapter is as it was.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"prompts.{name}": value for name, value in self.prompt_state.items()}
        tensors |= {f"merged.{name}": value for name, value in self.merged.items()}
        for layer, weights in enumerate(self.head_weights):
            tensors[f"head_weights.{layer}"] = weights
        content = save({name: value.contiguous() for name, value in tensors.items()})
        _finish_save(folder)  # before other weights take the name
        write_whole(folder / _NEXT_WEIGHTS, content)
        config = {
            "format": _FORMAT,
            "weights": hashlib.sha256(content).hexdigest(),
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
        write_whole(folder / _CONFIG, json.dumps(config, indent=2) + "\n")
        (folder / _NEXT_WEIGHTS).replace(folder / _WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read an adapter, FP32.

        Raises:
            ModelError: not an adapter folder, one whose files do not belong together, or not one
                this version reads.
        """
        try:
            config = parse_json((folder / _CONFIG).read_text(encoding="utf-8"))
            if config["format"] != _FORMAT:
                raise ModelError(f"{folder / _CONFIG}: format {config['format']} is not {_FORMAT}")
            content = _weights(folder, config)
            tensors = load(content)
            _require_whole(folder / _WEIGHTS, tensors)
            tensors = {name: t.float() for name, t in tensors.items()}
            heads = [name for name in tensors if name.startswith("head_weights.")]
            adapter = cls(
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
            adapter._require_sense()
            return adapter
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"cannot read an adapter from {folder}: {error}") from error

    def _require_sense(self) -> None:
        """Refuse words that nobody knows and numbers that would score NaN.

        Raises:
            ValueError: names the field.
        """
        for name, known in (
            ("head_mode", HeadMode),
            ("score", ScoreKind),
            ("mode", TrainedFor),
            ("resize", Resize),
        ):
            if (value := getattr(self, name)) not in get_args(known):
                raise ValueError(f"{name} is {value!r}; known are {', '.join(get_args(known))}")
        for name in ("denoising_weight", "a", "b", "matrix_a", "matrix_b"):
            if not math.isfinite(value := getattr(self, name)):
                raise ValueError(f"{name} is {value}, expected is a finite number")
        if not all(isinstance(level, (int, float)) and 0 < level < 1 for level in self.levels):
            raise ValueError(f"levels are {self.levels}, expected are numbers between 0 and 1")
        if self.head_weights and float(torch.cat(tuple(self.head_weights)).sum()) <= 0:
            raise ValueError("the head weights sum to nothing: there would be no score")

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


def adapter_hash(folder: Path) -> str:
    """sha256 of the weights that `Adapter.load` reads."""
    config = parse_json((folder / _CONFIG).read_text(encoding="utf-8"))
    return hashlib.sha256(_weights(folder, config)).hexdigest()


def _weights(folder: Path, config: Mapping[str, Any]) -> bytes:
    """The file of weights that a configuration is for; older ones do not say which that is."""
    if "weights" not in config:
        return (folder / _WEIGHTS).read_bytes()
    for path in (folder / _WEIGHTS, folder / _NEXT_WEIGHTS):
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == config["weights"]:
                return content
    raise ModelError(
        f"cannot read an adapter from {folder}: {_WEIGHTS} is missing, or not the file that "
        f"{_CONFIG} was written with (sha256 differs). Copy the adapter again, or train it again"
    )


def _finish_save(folder: Path) -> None:
    """Give the weights their name where an earlier save was stopped just before that."""
    unfinished = folder / _NEXT_WEIGHTS
    if not unfinished.is_file():
        return
    try:
        wanted = parse_json((folder / _CONFIG).read_text(encoding="utf-8")).get("weights")
    except (OSError, ValueError):
        return  # the save was the folder's first
    if hashlib.sha256(unfinished.read_bytes()).hexdigest() == wanted:
        unfinished.replace(folder / _WEIGHTS)


def _require_whole(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what no adapter holds, numbers that are not finite, and half of a change."""
    for name, tensor in tensors.items():
        if not name.startswith(("prompts.", "merged.", "head_weights.")):
            raise ModelError(f"{path} holds {name}, which is nothing of an adapter")
        if not tensor.is_floating_point() or not is_finite(tensor):
            raise ModelError(
                f"{path}: {name} holds numbers that are NaN, infinite or whole: the adapter is "
                "damaged, train it again"
            )
        if name.startswith("merged."):
            layer, _, part = name.rpartition(".")
            other = f"{layer}.{'down' if part == 'up' else 'up'}"
            if other not in tensors:
                raise ModelError(f"{path} holds {name} without {other}")


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
