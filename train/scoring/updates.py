"""Low-rank updates of the U-Net's own matrices: W' = W + up @ down (LoRA).

Attention prompts (Eq. 5) change keys and values alone, which are computed from the text. What the
image's queries do not show, such as a shape the base model never had to tell from others, no key
can find. Updates of query, output, self-attention and feed-forward matrices change the image's
features. Export merges them into the weights, so that they cost nothing when scoring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dsd_trt.errors import InputError
from dsd_trt.train.scoring.low_rank import updated_linear

_CROSS = ("attn2.to_q", "attn2.to_out.0")  # keys and values have prompts
_UPDATED = (
    *_CROSS,
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
)


class LowRankUpdates(nn.Module):
    """Learned updates of the linear layers of every transformer block of a U-Net.

    At initialisation `up` is zero, so the U-Net computes exactly what it did.

    Args:
        unet: U-Net whose layers are updated; it is not changed.
        rank: rank of each update, above 0.
        start: updates that training goes on from, as `merged` returns them; none by default.

    Raises:
        InputError: `start` is of other layers or of another rank.

    Attributes:
        names: path of each updated layer in the U-Net.
    """

    def __init__(
        self, unet: UNet2DConditionModel, rank: int, start: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        layers = {
            name: layer
            for name, layer in unet.named_modules()
            if isinstance(layer, nn.Linear) and name.endswith(_UPDATED)
        }
        self.names: tuple[str, ...] = tuple(layers)
        self.down: nn.ParameterList = nn.ParameterList(
            torch.randn(rank, layer.in_features) / layer.in_features**0.5
            for layer in layers.values()
        )
        self.up: nn.ParameterList = nn.ParameterList(
            torch.zeros(layer.out_features, rank) for layer in layers.values()
        )

        if start:
            self._continue_from(start)

    def _continue_from(self, start: Mapping[str, Tensor]) -> None:
        own = {
            f"{name}.{part}": tensors[i]
            for part, tensors in (("down", self.down), ("up", self.up))
            for i, name in enumerate(self.names)
        }
        if {name: it.shape for name, it in own.items()} != {n: t.shape for n, t in start.items()}:
            raise InputError(
                "training cannot start from these updates of the U-Net: they are of other layers "
                "or of another rank. Train from scratch: --from none"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(start[name])

    @contextmanager
    def applied_to(self, unet: UNet2DConditionModel) -> Iterator[None]:
        """Context in which the U-Net's layers compute W' x; gradients reach the updates.

        In mixed precision the update is added to each layer's output, because autocast chooses the
        precision of each product.
        """
        layers: list[Any] = [unet.get_submodule(name) for name in self.names]
        for layer, down, up in zip(layers, self.down, self.up, strict=True):

            def forward(
                states: Tensor, layer: Any = layer, down: Tensor = down, up: Tensor = up
            ) -> Tensor:
                if torch.is_autocast_enabled(states.device.type):
                    plain = F.linear(states, layer.weight, layer.bias)
                    return plain + F.linear(F.linear(states, down), up)
                return updated_linear(states, layer.weight, layer.bias, down, up)

            layer.forward = forward
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # the class's own is in effect again

    def merged(self) -> dict[str, Tensor]:
        """Copies of the updates on the CPU, by "LAYER PATH.up" and "LAYER PATH.down"."""
        tensors: dict[str, Any] = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            tensors[f"{name}.down"] = down.detach().cpu().clone()
            tensors[f"{name}.up"] = up.detach().cpu().clone()
        return tensors
