"""An adapter that is an input of the pair scorer, so that another one needs no other graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dsd_trt.bundle.manifest import AdapterInput
from dsd_trt.errors import InputError
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

FILE_NAME = "adapter.bin"


class FedScoringUNet(nn.Module):
    """A scoring U-Net whose prompts and head weights come in as one vector.

    Args:
        scoring: its prompts not folded in; their values and the head weights' are not used.
        tensors: what the vector is made of: names in `scoring` and shapes, in order.
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
        """As `ScoringUNet.forward`; `adapter` is FP32, (numbers,)."""
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
        """What the U-Net computes in."""
        return self.scoring.unet.dtype


def adapter_input(adapter: Adapter | None, scoring: ScoringUNet) -> AdapterInput:
    """What the graph's input is made of.

    Args:
        adapter: that the bundle begins with.
        scoring: built with it.

    Raises:
        InputError: there is no adapter, or one that changes weights of the U-Net itself.
    """
    if adapter is None or scoring.prompts is None:
        raise InputError(
            "--adapter-input is for an adapter with prompts: name one with --adapter, or leave "
            "out --adapter-input"
        )
    if adapter.merged:
        raise InputError(
            "the adapter changes weights of the U-Net itself, which are no input of the graph: "
            "leave out --adapter-input"
        )
    tensors = tensors_of(adapter, scoring.score_layers, scoring.heads)
    return AdapterInput(FILE_NAME, {name: tuple(it.shape) for name, it in tensors.items()})


def write_adapter_input(
    path: Path, adapter: Adapter, layers: Sequence[int], heads: Sequence[int]
) -> None:
    """Write the input's numbers.

    Args:
        path: the file.
        adapter: whose.
        layers: which are scored.
        heads: how many each of them has.
    """
    numbers = [it.numpy().ravel() for it in tensors_of(adapter, layers, heads).values()]
    np.concatenate(numbers).astype("<f4").tofile(path)


def tensors_of(adapter: Adapter, layers: Sequence[int], heads: Sequence[int]) -> dict[str, Tensor]:
    """What the vector is made of, by name in `ScoringUNet`."""
    prompts = {
        f"prompts.{name}": adapter.prompt_state[name] for name in sorted(adapter.prompt_state)
    }
    return prompts | {"head_weights": torch.cat(adapter.weights_of(layers, heads))}
