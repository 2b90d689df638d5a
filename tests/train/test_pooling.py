"""Pooling against closed forms, slow loops and the properties it promises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from dsd_trt.train.scoring.pooling import (
    CrossAttention,
    cosine_pool,
    logsumexp_pool,
    max_pool,
    pool,
)

LAMBDAS = [0.01, 1.0, 20.0, 100.0, 1e6]
any_lambda = pytest.mark.parametrize("lam", LAMBDAS)


def one_hot(image_tokens: int, where: int) -> Tensor:
    """A map of one head and one text token that a single image token attends to."""
    attention = torch.zeros(1, 1, image_tokens, 1)
    attention[0, 0, where, 0] = 1
    return attention


@any_lambda
@pytest.mark.parametrize("value", [0.0, 0.013, 0.5, 1.0])
def test_a_constant_map_pools_to_its_value(lam: float, value: float) -> None:
    pooled = logsumexp_pool(torch.full((2, 3, 64, 5), value), lam)
    assert pooled.shape == (2, 3, 5)
    torch.testing.assert_close(pooled, torch.full((2, 3, 5), value), atol=1e-4, rtol=0)
    if lam >= 1:
        torch.testing.assert_close(pooled, torch.full((2, 3, 5), value), atol=1e-6, rtol=0)


@any_lambda
@pytest.mark.parametrize("n", [1, 4, 64, 4096])
def test_a_one_hot_map_has_a_closed_form(lam: float, n: int) -> None:
    # exp(lambda) once and exp(0) n - 1 times; log1p keeps the form finite for any lambda.
    expected = (lam + math.log1p((n - 1) * math.exp(-lam)) - math.log(n)) / lam
    for where in (0, n - 1):
        pooled = logsumexp_pool(one_hot(n, where).double(), lam).item()
        assert pooled == pytest.approx(expected, abs=1e-9)
        assert logsumexp_pool(one_hot(n, where), lam).item() == pytest.approx(expected, abs=1e-4)


def test_a_small_lambda_gives_the_mean_and_a_large_one_the_maximum() -> None:
    attention = torch.rand(2, 3, 50, 7, generator=torch.Generator().manual_seed(0)).double()
    mean, largest = attention.mean(dim=2), attention.amax(dim=2)
    assert (logsumexp_pool(attention, 1e-6) - mean).abs().max() < 1e-6
    assert (logsumexp_pool(attention, 1e7) - largest).abs().max() < 1e-6
    # How fast: half the variance to first order, log(n) / lambda at most.
    variance = attention.var(dim=2, correction=0)
    assert (logsumexp_pool(attention, 1e-2) - mean - 5e-3 * variance).abs().max() < 1e-5
    below = largest - logsumexp_pool(attention, 300.0)
    assert below.min() >= 0
    assert below.max() <= math.log(50) / 300


@st.composite
def softmaxed(draw: st.DrawFn) -> Tensor:
    """Maps (batch, heads, image_tokens, text_tokens), from uniform to one-hot."""
    shape = draw(arrays.array_shapes(min_dims=4, max_dims=4, max_side=6))
    logits = draw(arrays.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32)))
    return torch.from_numpy(logits).softmax(dim=3)


@settings(deadline=None, derandomize=True)
@given(attention=softmaxed(), lam=st.floats(0.1, 1e4))
def test_pooled_attention_lies_between_the_mean_and_the_maximum_and_in_0_1(
    attention: Tensor, lam: float
) -> None:
    pooled = logsumexp_pool(attention, lam)
    rounding = 1e-6 + 1e-6 / lam
    assert pooled.min() >= -rounding
    assert pooled.max() <= 1 + rounding
    assert (pooled >= attention.mean(dim=2) - rounding).all()
    assert (pooled <= max_pool(attention) + rounding).all()
    assert (pooled <= logsumexp_pool(attention, 2 * lam) + rounding).all()


@settings(deadline=None, derandomize=True)
@given(attention=softmaxed(), seed=st.integers(0, 2**32 - 1))
def test_pooling_does_not_care_for_the_order_or_copies_of_image_tokens(
    attention: Tensor, seed: int
) -> None:
    order = torch.randperm(attention.shape[2], generator=torch.Generator().manual_seed(seed))
    pooled = logsumexp_pool(attention, 20)
    shuffled = logsumexp_pool(attention[:, :, order], 20)
    finer = logsumexp_pool(attention.repeat_interleave(4, dim=2), 20)  # twice the resolution
    torch.testing.assert_close(shuffled, pooled, atol=1e-6, rtol=0)
    torch.testing.assert_close(finer, pooled, atol=1e-6, rtol=0)


def test_max_takes_the_largest() -> None:
    attention = torch.rand(2, 3, 10, 4, generator=torch.Generator().manual_seed(1))
    pooled = max_pool(attention)
    for b, h, j in np.ndindex(2, 3, 4):
        assert pooled[b, h, j] == max(attention[b, h, :, j].tolist())


@pytest.mark.parametrize(("image_width", "text_width"), [(6, 6), (9, 6), (4, 6)])
def test_cosine_equals_a_slow_loop(image_width: int, text_width: int) -> None:
    random = np.random.default_rng(2)
    image = random.normal(size=(2, 10, image_width))
    text = random.normal(size=(2, 5, text_width))
    pooled = cosine_pool(torch.from_numpy(image), torch.from_numpy(text))
    assert pooled.shape == (2, 1, 5)
    shared = min(image_width, text_width)
    for b, j in np.ndindex(2, 5):
        r = text[b, j, :shared]
        total = 0.0
        for q in image[b, :, :shared]:
            total += q @ r / math.sqrt((q @ q) * (r @ r))
        assert pooled[b, 0, j].item() == pytest.approx((1 + total / 10) / 2, abs=1e-6)


def test_cosine_reaches_both_ends_and_ignores_length() -> None:
    image = torch.tensor([[[3.0, 0.0], [0.1, 0.0]]])
    text = torch.tensor([[[2.0, 0.0], [-5.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    assert cosine_pool(image, text)[0, 0].tolist() == pytest.approx([1, 0, 0.5, 0.5])


def test_each_name_selects_its_pooling() -> None:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(1, 6, 8, generator=generator)
    text = torch.randn(1, 4, 8, generator=generator)
    attention = torch.randn(1, 2, 6, 4, generator=generator).softmax(dim=3)
    seen = CrossAttention(0, image, text, attention.log(), attention)
    assert torch.equal(pool(seen, "lse", 7), logsumexp_pool(attention, 7))
    assert torch.equal(pool(seen, "max", 7), attention.amax(dim=2))
    assert torch.equal(pool(seen, "cosine", 7), cosine_pool(image, text))
    # Softmaxed maps are their own logits, but for a constant: every LogSumExp over tokens is 0.
    assert torch.allclose(pool(seen, "logits", 7), torch.zeros(1, 2, 4), atol=1e-6)
    doubled = replace(seen, logits=2 * seen.logits)
    by_hand = torch.stack(
        [
            torch.stack([(row.double() ** 2).sum().log() for row in head]).mean()
            for head in attention[0]
        ]
    )
    assert torch.allclose(pool(doubled, "logits", 7)[0], by_hand.float()[:, None].expand(2, 4))
