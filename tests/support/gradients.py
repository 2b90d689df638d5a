"""Check gradients against finite differences, which hold on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn


def require_gradient_is_slope(
    parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor]
) -> None:
    """Require that the loss's slope along its gradient is the gradient's norm.

    The slope is a central difference. A short enough step against the gradient then lowers the
    loss.

    Args:
        parameters: trained parameters, which are perturbed here: factors that start at zero would
            hide the effect of others.
        loss: function that computes the FP32 loss with its autograd graph.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learned:
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    loss().backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
    assert max(float(g.abs().max()) for g in gradient if g.dim() > 1) > 0  # prompts are matrices
    length = math.sqrt(sum(float(g.square().sum()) for g in gradient))
    step = 2e-3 / length  # changes the loss by 2e-3: far above rounding, far below its curvature

    @torch.no_grad()
    def moved(by: float) -> float:
        for parameter, g in zip(learned, gradient, strict=True):
            parameter.add_(g, alpha=by / length)
        return float(loss())

    rise = moved(step) - moved(-2 * step)
    assert rise / (2 * step) == pytest.approx(length, rel=0.02)
