"""Linear layers with a low-rank update: output and gradients against the matrix written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsd_trt.train.scoring.low_rank import updated_linear


def _parts(bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """States, W, bias, down and up in double precision; the states and factors are learned."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    learned = [normal(2, 3, 5), normal(2, 5), normal(7, 2)]
    states, down, up = (it.requires_grad_() for it in learned)
    return states, normal(7, 5), normal(7) if bias else None, down, up


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_whole_matrix(bias: bool) -> None:
    states, weight, offset, down, up = _parts(bias)
    found = updated_linear(states, weight, offset, down, up)
    expected = F.linear(states, weight + up @ down, offset)
    torch.testing.assert_close(found, expected)
    along = torch.arange(42, dtype=torch.float64).view(2, 3, 7).cos()
    learned = (states, down, up)
    of_found = torch.autograd.grad((found * along).sum(), learned)
    of_expected = torch.autograd.grad((expected * along).sum(), learned)
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_states_get_no_gradient_and_frozen_factors_leave_that_of_the_states() -> None:
    states, weight, _, down, up = _parts(bias=False)
    found = updated_linear(states.detach(), weight, None, down, up)
    of_down, of_up = torch.autograd.grad(found.sum(), (down, up))
    assert of_down.abs().min() > 0
    assert of_up.abs().min() > 0
    frozen = updated_linear(states, weight, None, down.detach(), up.detach())
    (of_states,) = torch.autograd.grad(frozen.sum(), states)
    torch.testing.assert_close(of_states, (weight + up @ down).sum(0).expand(2, 3, 5))
