"""The few-shot adapter on disk: prompts, head weights and calibration for one base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dsd_trt.bundle.lists import Lists
from dsd_trt.bundle.manifest import NOT_FITTED, Calibration, Resize
from dsd_trt.bundle.method import HeadMode, Mode, ScoreKind, TrainedFor
from dsd_trt.errors import ModelError, counted
from dsd_trt.files.folders import sync_folder
from dsd_trt.files.lock import sole_writer
from dsd_trt.files.schema import to_plain
from dsd_trt.files.whole import write_whole
from dsd_trt.train.diffusion.place import require_weights
from dsd_trt.train.diffusion.weights import is_finite
from dsd_trt.train.scoring.adapter_file import (
    CONFIG_NAME,
    FORMAT,
    NEXT_WEIGHTS,
    WEIGHTS_NAME,
    AdapterConfig,
    AdapterFile,
    count_prompted,
    read_config,
    unreadable,
)
from dsd_trt.train.scoring.choices import PromptConfig
from dsd_trt.train.scoring.scoring_unet import uniform_head_weights

_OTHER_WRITER = 60.0  # seconds to wait for another process that is writing the same adapter


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
        token_heads: parameters of a `TokenHeads` by name, with which matrix mode estimates this
            adapter's scores in pair mode; empty without.
        relations: parameters of a `Relations` by name, which adds to the score of the token
            heads; empty without.
        lists: how far down matrix mode's lists the best of pair mode stand; None if not measured.
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
    token_heads: Mapping[str, Tensor] = field(default_factory=dict)
    relations: Mapping[str, Tensor] = field(default_factory=dict)
    lists: Lists | None = None

    @classmethod
    def unchanged(
        cls, score: ScoreKind, levels: tuple[float, ...] = (), base: Mapping[str, str] | None = None
    ) -> Adapter:
        """An adapter without prompts, head weights, updates and calibration.

        Args:
            score: score it is of, see `Method` of the bundle.
            levels: noise levels s; empty if unknown.
            base: sha256 of each weight file of the base model; None if unknown.
        """
        return cls(
            prompt_config=None,
            prompt_state={},
            head_mode="uniform",
            head_weights=(),
            score=score,
            denoising_weight=1.0,
            a=NOT_FITTED.a,
            b=NOT_FITTED.b,
            levels=levels,
            base=base or {},
        )

    def save(self, folder: Path) -> None:
        """Write `adapter.safetensors` and `adapter.json`, which records the former's sha256.

        The replacement of `adapter.json` commits the change. Before it, the old weights are
        complete under their name. After it, the new ones are complete, either under that name or
        as `NEXT_WEIGHTS`.

        Args:
            folder: folder of the adapter; created if missing.

        Raises:
            DsdError: a file could not be written, for example on a full disk; an existing adapter
                is left unchanged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"prompts.{name}": value for name, value in self.prompt_state.items()}
        tensors |= {f"merged.{name}": value for name, value in self.merged.items()}
        tensors |= {f"token_heads.{name}": value for name, value in self.token_heads.items()}
        tensors |= {f"relations.{name}": value for name, value in self.relations.items()}
        for layer, weights in enumerate(self.head_weights):
            tensors[f"head_weights.{layer}"] = weights
        content = save({name: value.contiguous() for name, value in tensors.items()})
        config = AdapterConfig(
            format=FORMAT,
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
            lists=self.lists,
            training=self.training,
        )
        with sole_writer(folder / CONFIG_NAME, wait=_OTHER_WRITER):
            _finish_save(folder)  # before the next weights replace those of an interrupted save
            write_whole(folder / NEXT_WEIGHTS, content)
            write_whole(folder / CONFIG_NAME, json.dumps(to_plain(config), indent=2) + "\n")
            (folder / NEXT_WEIGHTS).replace(folder / WEIGHTS_NAME)
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
        file = AdapterFile.read(folder)
        config = file.config
        try:
            tensors = load(file.content)
            _require_finite(tensors)
            tensors = {name: t.float() for name, t in tensors.items()}
            adapter = cls(
                prompt_config=config.prompts,
                prompt_state=_under("prompts.", tensors),
                head_mode=config.head_mode,
                head_weights=[tensors[name] for name in file.head_weights],
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
                token_heads=_under("token_heads.", tensors),
                relations=_under("relations.", tensors),
                lists=config.lists,
            )
            if adapter.head_weights and float(torch.cat(tuple(adapter.head_weights)).sum()) <= 0:
                raise ValueError("the head weights sum to 0: there would be no score")
            return adapter
        except (ValueError, RuntimeError, SafetensorError) as error:
            raise unreadable(folder, error) from None

    @property
    def layers(self) -> int:
        """Number of cross-attention layers of the base model; 0 if the adapter does not tell."""
        return count_prompted(self.prompt_state) or len(self.head_weights)

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
        require_weights(self.base, weight_hashes)

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
                f"the adapter weights {counted(len(self.head_weights), 'layer')}; layer "
                f"{max(layers)} is not among them"
            )
        chosen = [self.head_weights[layer] for layer in layers]
        if [len(weights) for weights in chosen] != list(heads):
            raise ModelError("the adapter's head weights do not fit the model's heads")
        if not float(total := torch.cat(chosen).sum()) > 0:
            raise ModelError(
                "the adapter gives the scored layers no weight: score others, such as all"
            )
        return [weights / total for weights in chosen]


def _finish_save(folder: Path) -> None:
    """Complete a save that was interrupted between its two file replacements."""
    unfinished = folder / NEXT_WEIGHTS
    if not unfinished.is_file():
        return
    try:
        wanted = read_config(folder).weights
    except ModelError:
        return  # the interrupted save was the folder's first, so there is nothing to complete
    if hashlib.sha256(unfinished.read_bytes()).hexdigest() == wanted:
        unfinished.replace(folder / WEIGHTS_NAME)


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
