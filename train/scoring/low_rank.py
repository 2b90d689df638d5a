"""Linear layers with a learned low-rank update of a frozen matrix: y = (W + up @ down) x.

Autograd forms the gradient of the whole matrix, a product as large as the layer's own, or keeps
the outputs of two more layers and adds them. Both factors' gradients are thin products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def updated_linear(
    states: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> Tensor:
    """Output of a linear layer with the matrix W + up @ down, as export merges it.

    Args:
        states: input of the layer, (..., in).
        weight: frozen matrix W, (out, in).
        bias: frozen bias, (out,), or None.
        down: second factor of the update, (rank, in).
        up: first factor of the update, (out, rank).

    Returns:
        Output, (..., out). Gradients reach `states`, `down` and `up`, and not `weight` and `bias`.
    """
    if torch.is_grad_enabled() and (down.requires_grad or up.requires_grad):
        apply: Any = _UpdatedLinear.apply  # has no types in torch
        output: Tensor = apply(states, weight, bias, down, up)
        return output
    return F.linear(states, weight + up @ down, bias)


class _UpdatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
    ) -> Tensor:
        ctx.save_for_backward(states, weight, down, up)
        return F.linear(states, weight + up @ down, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, down, up = ctx.saved_tensors
        (gradient,) = gradients  # (..., out)
        # W' is formed again, because keeping it would cost the memory of a second U-Net.
        of_states = gradient @ (weight + up @ down) if ctx.needs_input_grad[0] else None
        rows, outer = states.flatten(0, -2), gradient.flatten(0, -2)  # (n, in), (n, out)
        # Thin products have the rank first: the other way round they take up to ten times as long.
        of_down = (up.T @ outer.T) @ rows  # (rank, n) @ (n, in)
        of_up = ((down @ rows.T) @ outer).T.contiguous()  # ((rank, n) @ (n, out)).T
        return of_states, None, None, of_down, of_up
