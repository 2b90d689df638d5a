"""GEGLU gates in a form that CPU engines run fast."""

from __future__ import annotations

from diffusers.models.activations import GEGLU
from torch import Tensor, nn


class TwoLinears(nn.Module):
    """A GEGLU with separate products for value and gate, from the same weights.

    diffusers slices both out of one product, and OpenVINO copies the slices number by number. The
    copies take 3 % of a pass of Stable Diffusion 2.1 base in BF16; splitting the product saves
    twice that in all (docs/speed.md).

    Args:
        geglu: the module to replace, with weights (8 D, D) and bias (8 D,).
    """

    def __init__(self, geglu: GEGLU) -> None:
        super().__init__()
        self.value, self.gate = (nn.Linear(1, 1) for _ in range(2))
        # (8 D, D) -> 2 x (4 D, D); (8 D,) -> 2 x (4 D,)
        weights, biases = geglu.proj.weight.chunk(2), geglu.proj.bias.chunk(2)
        for linear, weight, bias in zip((self.value, self.gate), weights, biases, strict=True):
            linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute GELU(gate) * value: (B, n, D) -> (B, n, 4 D)."""
        value: Tensor = self.value(x)
        return value * nn.functional.gelu(self.gate(x))


def split_gates(module: nn.Module) -> None:
    """Replace every GEGLU of a module by `TwoLinears`, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, GEGLU):
                setattr(parent, name, TwoLinears(child))
