"""Feed-forward gates in a form that engines on CPUs are fast at."""

from __future__ import annotations

from diffusers.models.activations import GEGLU
from torch import Tensor, nn


class TwoLinears(nn.Module):
    """A GEGLU whose value and gate are computed apart, from the same weights.

    Cut out of one product, as in diffusers, they are copied: by OpenVINO number by number, 3 % of
    a pass of Stable Diffusion 2.1 base in BF16 and twice that in all (docs/speed.md).
    """

    def __init__(self, geglu: GEGLU) -> None:
        super().__init__()
        self.value, self.gate = (nn.Linear(1, 1) for _ in range(2))
        weights, biases = geglu.proj.weight.chunk(2), geglu.proj.bias.chunk(2)
        for linear, weight, bias in zip((self.value, self.gate), weights, biases, strict=True):
            linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """GELU(gate) times value: (B, n, D) to (B, n, 4 D)."""
        value: Tensor = self.value(x)
        return value * nn.functional.gelu(self.gate(x))


def split_gates(module: nn.Module) -> None:
    """Replace every GEGLU within a module."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, GEGLU):
                setattr(parent, name, TwoLinears(child))
