"""The few-shot adapter on disk: prompts, head weights and calibration for one base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dsd_trt.bundle.manifest import (
    NOT_FITTED,
    Calibration,
    HeadMode,
    Mode,
    Resize,
    ScoreKind,
    TrainedFor,
)
from dsd_trt.errors import ModelError
from dsd_trt.files.folders import sync_folder
from dsd_trt.files.lock import sole_writer
from dsd_trt.files.schema import SchemaError, from_plain, read_json, to_plain
from dsd_trt.files.tensor_file import TensorHeader, read_tensor_headers
from dsd_trt.files.whole import write_whole
from dsd_trt.train.diffusion.weights import is_finite
from dsd_trt.train.scoring.prompts import PromptConfig
from dsd_trt.train.scoring.scoring_unet import uniform_head_weights

CONFIG_NAME, PLAN_NAME, STATE_NAME = "adapter.json", "plan.json", "training.ckpt"
"""Files of an adapter's folder: its description, and the settings and state of its training."""

_WEIGHTS = "adapter.safetensors"
_NEXT_WEIGHTS = f".{_WEIGHTS}.next"
_OTHER_WRITER = 60.0  # seconds to wait for another process that is writing the same adapter
_FORMAT = 2


@dataclass(frozen=True)
class Adapter:
    """The result of few-shot training.

    Attributes:
        prompt_config: sizes of the prompts; None for an adapter without prompts.
        prompt_state: parameters of an `AttentionPrompts`, by their names in its state_dict.
        head_mode: source of the head weights, see `HeadWeights` of the bundle.
        head_weights: w_{l,h} of every cross-attention layer, (heads,) each; an empty sequence
            means uniform weights.
        score: score the adapter was trained for, see `Method` of the bundle.
        denoising_weight: weight w of the denoising term in that score.
        a: scale a of the match probability sigmoid(a s + b) in pair mode.
        b: offset b of the match probability in pair mode.
        levels: noise levels s of training, for which a and b were fitted with all layers scored;
            empty if unknown.
        base: sha256 of each weight file of the base model, by file name; empty if unknown.
        resize: method by which training images were made square, see `Resize`.
        training: free-form record of the training settings and its accuracy.
        mode: mode the adapter was trained for, see `dsd_trt.train.scoring.matrix`.
        matrix_a: scale a of the match probability in matrix mode.
        matrix_b: offset b of the match probability in matrix mode.
        merged: low-rank updates of the U-Net's own weights, by "LAYER PATH.up" and
            "LAYER PATH.down".
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
        """Write `adapter.safetensors` and `adapter.json`, which records the former's sha256.

        The replacement of `adapter.json` commits the change. Before it, the old weights are
        complete under their name. After it, the new ones are complete, either under that name or
        as `_NEXT_WEIGHTS`.

        Args:
            folder: folder of the adapter; created if missing.

        Raises:
            DsdError: a file could not be written, for example on a full disk; an existing adapter
                is left unchanged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"prompts.{name}": value for name, value in self.prompt_state.items()}
        tensors |= {f"merged.{name}": value for name, value in self.merged.items()}
        for layer, weights in enumerate(self.head_weights):
            tensors[f"head_weights.{layer}"] = weights
        content = save({name: value.contiguous() for name, value in tensors.items()})
        config = _Config(
            format=_FORMAT,
            weights=hashlib.sha256(content).hexdigest(),
            prompts=self.prompt_config,
            head_mode=self.head_mode,
            score=self.score,
            denoising_weight=self.denoising_weight,
            a=self.a,
            b=self.b,
            mode=self.mode,
            matrix_a=self.matrix_a,
            matrix_b=self.matrix_b,
            levels=self.levels,
            resize=self.resize,
            base=self.base,
            training=self.training,
        )
        with sole_writer(folder / CONFIG_NAME, wait=_OTHER_WRITER):
            _finish_save(folder)  # before the next weights replace those of an interrupted save
            write_whole(folder / _NEXT_WEIGHTS, content)
            write_whole(folder / CONFIG_NAME, json.dumps(to_plain(config), indent=2) + "\n")
            (folder / _NEXT_WEIGHTS).replace(folder / _WEIGHTS)
            sync_folder(folder)

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read an adapter; its tensors become FP32.

        Args:
            folder: folder of `adapter.json` and `adapter.safetensors`.

        Raises:
            ModelError: the folder is not an adapter, its two files do not belong together, or its
                format is not one this version reads.
        """
        config = _read_config(folder)
        content = _weights(folder, config)
        try:
            headers = read_tensor_headers(BytesIO(content))
            _require_known(config, headers)
            tensors = load(content)
            _require_finite(tensors)
            tensors = {name: t.float() for name, t in tensors.items()}
            adapter = cls(
                prompt_config=config.prompts,
                prompt_state=_under("prompts.", tensors),
                head_mode=config.head_mode,
                head_weights=[tensors[name] for name in _head_weights(headers)],
                score=config.score,
                denoising_weight=config.denoising_weight,
                a=config.a,
                b=config.b,
                levels=config.levels,
                resize=config.resize or "bicubic-stretch",
                base=config.base,
                training=config.training,
                mode=config.mode or "pair",
                matrix_a=1.0 if config.matrix_a is None else config.matrix_a,
                matrix_b=0.0 if config.matrix_b is None else config.matrix_b,
                merged=_under("merged.", tensors),
            )
            if adapter.head_weights and float(torch.cat(tuple(adapter.head_weights)).sum()) <= 0:
                raise ValueError("the head weights sum to 0: there would be no score")
            return adapter
        except (ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"cannot read an adapter from {folder}: {_WEIGHTS}: {error}") from None

    @property
    def layers(self) -> int:
        """Number of cross-attention layers of the base model; 0 if the adapter does not tell."""
        prompted = [
            name for name in self.prompt_state if name.startswith("key.") and name.endswith(".u")
        ]
        return len(prompted) or len(self.head_weights)

    def calibration_of(self, mode: Mode) -> Calibration | None:
        """(a, b) of a mode's match probability; None if training did not fit them."""
        if self.mode not in (mode, "both") or not self.levels:
            return None
        a, b = (self.a, self.b) if mode == "pair" else (self.matrix_a, self.matrix_b)
        found = Calibration(a, b)
        return None if found == NOT_FITTED else found

    def require_base(self, weight_hashes: Mapping[str, str]) -> None:
        """Refuse a base model other than the one the adapter was trained on.

        Args:
            weight_hashes: sha256 of each weight file of the base model, by file name.

        Raises:
            ModelError: a weight file differs; the message names the first.
        """
        for file, expected in self.base.items():
            if weight_hashes.get(file) != expected:
                raise ModelError(
                    f"the adapter was trained on another model: {file} differs. Train one for "
                    "this model: dsd-trt train"
                )

    def require_score(self, score: ScoreKind) -> None:
        """Refuse a score other than the one the adapter was trained for.

        Raises:
            ModelError: the scores differ; the message names both.
        """
        # An imported adapter changes weights alone, so that it serves any score.
        if score != self.score and self.score != "released":
            raise ModelError(
                f'the adapter was trained for the score "{self.score}", not "{score}": leave out '
                "--score, or train an adapter for it"
            )

    def merge_into(self, unet: nn.Module) -> None:
        """Add the low-rank updates up @ down to the weights of a U-Net, in place.

        Args:
            unet: U-Net of the base model; meta tensors are checked for size alone.

        Raises:
            ModelError: the U-Net lacks an updated layer, or has it in another size.
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
        """Head weights of the scored layers, normalised to sum to 1.

        Args:
            layers: indices of the scored cross-attention layers.
            heads: number of heads of each scored layer.

        Returns:
            Weights w_{l,h} of each scored layer, (heads,) each; uniform if the adapter has none.

        Raises:
            ModelError: the adapter has no weights for one of the layers, or they sum to 0.
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
        if not float(total := torch.cat(chosen).sum()) > 0:
            raise ModelError(
                "the adapter gives the scored layers no weight: score others, such as all"
            )
        return [weights / total for weights in chosen]


def adapter_hash(folder: Path) -> str:
    """sha256 of the weights that `Adapter.load` reads.

    Raises:
        ModelError: `adapter.json` or the weights it names cannot be read.
    """
    return hashlib.sha256(_weights(folder, _read_config(folder))).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Config:
    """Schema of `adapter.json`; fields that older versions did not write are optional."""

    format: int
    weights: str | None = field(default=None, metadata={"optional": True})
    prompts: PromptConfig | None
    head_mode: HeadMode
    score: ScoreKind
    denoising_weight: float
    a: float
    b: float
    mode: TrainedFor | None = field(default=None, metadata={"optional": True})
    matrix_a: float | None = field(default=None, metadata={"optional": True})
    matrix_b: float | None = field(default=None, metadata={"optional": True})
    levels: tuple[float, ...]
    resize: Resize | None = field(default=None, metadata={"optional": True})
    base: Mapping[str, str]
    training: Mapping[str, Any]


def _read_config(folder: Path) -> _Config:
    path = folder / CONFIG_NAME
    try:
        plain = read_json(path)
        found = plain.get("format") if isinstance(plain, dict) else None
        if found != _FORMAT:
            raise ValueError(f"{CONFIG_NAME}: format {found!r} is not {_FORMAT}")
        config = from_plain(_Config, plain)
        if not all(0 < level < 1 for level in config.levels):
            raise ValueError(f"{CONFIG_NAME}: field 'levels' must be of numbers between 0 and 1")
        return config
    except FileNotFoundError:
        raise ModelError(_why_none(folder)) from None
    except SchemaError as error:
        raise ModelError(f"cannot read an adapter from {folder}: {CONFIG_NAME}: {error}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read an adapter from {folder}: {error}") from None


def _why_none(folder: Path) -> str:
    """Message for a folder without an adapter: its training may not have finished."""
    if (folder / STATE_NAME).exists() or (folder / PLAN_NAME).exists():
        return (
            f"training in {folder} has not finished: go on with the command that began it, "
            f"dsd-trt train ... --out {folder}"
        )
    if (folder / "adapter" / CONFIG_NAME).exists():
        return f"no adapter in {folder} (no {CONFIG_NAME}); there is one in {folder / 'adapter'}"
    return f"no adapter in {folder} (no {CONFIG_NAME}): train one with dsd-trt train --out {folder}"


def _weights(folder: Path, config: _Config) -> bytes:
    """Content of the weight file with the configuration's sha256, which older ones lack."""
    try:
        if config.weights is None:
            return (folder / _WEIGHTS).read_bytes()
        for path in (folder / _WEIGHTS, folder / _NEXT_WEIGHTS):
            if path.is_file():
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == config.weights:
                    return content
    except OSError as error:
        raise ModelError(f"cannot read an adapter from {folder}: {error}") from None
    raise ModelError(
        f"cannot read an adapter from {folder}: {_WEIGHTS} is missing, or not the file that "
        f"{CONFIG_NAME} was written with (sha256 differs). Copy the adapter again, or train it "
        "again"
    )


def _finish_save(folder: Path) -> None:
    """Complete a save that was interrupted between its two file replacements."""
    unfinished = folder / _NEXT_WEIGHTS
    if not unfinished.is_file():
        return
    try:
        wanted = _read_config(folder).weights
    except ModelError:
        return  # the interrupted save was the folder's first, so there is nothing to complete
    if hashlib.sha256(unfinished.read_bytes()).hexdigest() == wanted:
        unfinished.replace(folder / _WEIGHTS)


def _require_known(config: _Config, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse unknown tensors, incomplete low-rank updates and contradicting shapes.

    Whether prompts and head weights fit a base model is checked when the two are combined.

    Raises:
        ValueError: a tensor is unknown, missing or misshapen; the message names it.
    """
    for name, tensor in headers.items():
        if not name.startswith(("prompts.", "merged.", "head_weights.")):
            raise ValueError(f"it holds {ascii(name[:80])[1:-1]}, which no adapter has")
        if name.startswith("prompts.") and config.prompts is None:
            raise ValueError(f"it holds {name}, but {CONFIG_NAME} has no prompts")
        if name.startswith("merged."):
            layer, _, part = name.rpartition(".")
            other = f"{layer}.{'down' if part == 'up' else 'up'}"
            if part not in ("up", "down") or other not in headers:
                raise ValueError(f"it holds {name} without {other}")
            if len(tensor.shape) != 2 or not all(tensor.shape):
                raise ValueError(f"{name} is {list(tensor.shape)}, expected a matrix")
            if part == "up" and headers[other].shape[:1] != tensor.shape[1:]:
                raise ValueError(f"{name} and {other} are of different rank")
    if config.prompts is not None and not any(name.startswith("prompts.") for name in headers):
        raise ValueError(f"it holds no prompts, but {CONFIG_NAME} has their sizes")
    for name in _head_weights(headers):
        if name not in headers:
            raise ValueError(f"it lacks {name}")
        if len(headers[name].shape) != 1 or not headers[name].shape[0]:
            raise ValueError(f"{name} is {list(headers[name].shape)}, expected one number per head")


def _head_weights(headers: Mapping[str, TensorHeader]) -> list[str]:
    """Required names of the head weights' tensors, given their count."""
    count = sum(name.startswith("head_weights.") for name in headers)
    return [f"head_weights.{layer}" for layer in range(count)]


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of integers and tensors with NaN or infinity.

    Raises:
        ValueError: a tensor is not finite floating point; the message names it.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not is_finite(tensor):
            raise ValueError(
                f"{name} holds NaN, infinity or integers: the adapter is damaged, train it again"
            )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names start with a prefix, by their names without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def resize_of(adapter: Adapter | None, asked: Resize | None = None) -> Resize:
    """Resize method: the one asked for, else the adapter's, else "bicubic-stretch"."""
    return asked or (adapter.resize if adapter else "bicubic-stretch")
