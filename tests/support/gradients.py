"""Gradients against differences: true of every machine, as the outcome of training is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn


def require_gradient_is_slope(
    parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor]
) -> None:
    """Along its gradient the loss rises as steeply as the gradient is long (central differences).

    So a short enough step against it makes the loss smaller.

    Args:
        parameters: what is learned; disturbed, since factors that begin as zeros would keep
            others from mattering.
        loss: computes it anew, FP32, with a graph.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learned:
            parameter += 0.05 * torch.randn(parameter.shape)
    loss().backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
    assert max(float(g.abs().max()) for g in gradient if g.dim() > 1) > 0  # of the prompts
    length = math.sqrt(sum(float(g.square().sum()) for g in gradient))
    step = 2e-3 / length  # moves the loss by 2e-3: far above rounding, far below its curvature

    @torch.no_grad()
    def moved(by: float) -> float:
        for parameter, g in zip(learned, gradient, strict=True):
            parameter += by * g / length
        return float(loss())

    rise = moved(step) - moved(-2 * step)
    assert rise / (2 * step) == pytest.approx(length, rel=0.02)
