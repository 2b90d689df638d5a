"""The adapter as an input of the pair scorer, so that it can be replaced without a new export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dsd_trt.bundle.manifest import AdapterInput
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

FILE_NAME = "adapter.bin"


class FedScoringUNet(nn.Module):
    """A scoring U-Net whose prompts and head weights arrive as one input vector.

    Args:
        scoring: scoring U-Net with unfolded prompts; its own prompts and head weights are unused.
        tensors: names in `scoring` and shapes of the vector's parts, in the vector's order.
    """

    def __init__(self, scoring: ScoringUNet, tensors: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.scoring = scoring
        self.tensors = tensors

    def forward(
        self,
        latent: Tensor,
        level: Tensor,
        text_states: Tensor,
        token_mask: Tensor,
        adapter: Tensor,
    ) -> tuple[Tensor, ...]:
        """Score as `ScoringUNet.forward` does; `adapter` is FP32 (numbers,)."""
        # (numbers,) -> one flat part per tensor
        parts = adapter.split([math.prod(shape) for shape in self.tensors.values()])
        fed = {
            # Head weights are constants of the score, FP32 in every precision.
            name: part.view(shape) if name == "head_weights" else part.view(shape).to(self.dtype)
            for (name, shape), part in zip(self.tensors.items(), parts, strict=True)
        }
        scored: tuple[Tensor, ...] = functional_call(
            self.scoring, fed, (latent, level, text_states, token_mask)
        )
        return scored

    @property
    def dtype(self) -> torch.dtype:
        """Type of the U-Net's weights and activations."""
        return self.scoring.unet.dtype


def adapter_input(adapter: Adapter, scoring: ScoringUNet) -> AdapterInput:
    """Describe the graph's adapter input for the manifest.

    Args:
        adapter: adapter the bundle is exported with, see `require_consistent`.
        scoring: scoring U-Net that was built with `adapter`.

    Returns:
        The file name of the vector, and names and shapes of its parts in order.
    """
    tensors = tensors_of(adapter, scoring.score_layers, scoring.heads)
    return AdapterInput(FILE_NAME, {name: tuple(it.shape) for name, it in tensors.items()})


def write_adapter_input(
    path: Path, adapter: Adapter, layers: Sequence[int], heads: Sequence[int]
) -> None:
    """Write the adapter input's vector as little-endian FP32 numbers without a header.

    Args:
        path: file to write, usually the bundle's `adapter.bin`.
        adapter: adapter whose prompts and head weights are written.
        layers: indices of the scored cross-attention layers.
        heads: number of attention heads of each scored layer.
    """
    numbers = [it.numpy().ravel() for it in tensors_of(adapter, layers, heads).values()]
    np.concatenate(numbers).astype("<f4").tofile(path)


def tensors_of(adapter: Adapter, layers: Sequence[int], heads: Sequence[int]) -> dict[str, Tensor]:
    """Tensors of the adapter input in order, by their names in `ScoringUNet`."""
    prompts = {
        f"prompts.{name}": adapter.prompt_state[name] for name in sorted(adapter.prompt_state)
    }
    return prompts | {"head_weights": torch.cat(adapter.weights_of(layers, heads))}
