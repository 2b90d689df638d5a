"""Head weights (Eq. 7): closed form against autograd, autograd against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from unets import random_levels, random_pairs, random_unet

from dsd_trt.train.scoring.head_weights import calibrated_weights, head_attributions
from dsd_trt.train.scoring.pooling import attribution, logsumexp_pool
from dsd_trt.train.scoring.scoring_unet import Response, ScoringUNet, average_heads, average_tokens


@pytest.mark.parametrize("lam", [0.5, 20.0, 100.0])
def test_closed_form_is_the_map_times_the_poolings_gradient(lam: float) -> None:
    maps = torch.rand(2, 3, 16, 5, generator=torch.Generator().manual_seed(0)).double()
    maps.requires_grad_()
    (gradient,) = torch.autograd.grad(logsumexp_pool(maps, lam).sum(), maps)
    expected = (maps * gradient).sum(dim=2)
    torch.testing.assert_close(attribution(maps, lam), expected)
    assert bool(((attribution(maps, lam) >= 0) & (attribution(maps, lam) <= 1)).all())


@pytest.mark.parametrize("name", ["sd 2", "shapes"])
def test_exact_attribution_of_the_last_layer_is_the_closed_form(name: str) -> None:
    scoring = ScoringUNet(random_unet(name), random_levels())
    z, level, states, mask = random_pairs(3)
    exact = head_attributions(scoring, z, level, states, mask)
    walk = scoring.cross_attentions(scoring.add_noise(z, level), scoring.timesteps[level], states)
    last = list(walk)[-1].attention
    of_tokens = average_tokens(attribution(last, scoring.lam), mask[:, None])  # (batch, heads)
    heads = last.shape[1]
    torch.testing.assert_close(
        exact[:, -heads:], of_tokens * scoring.head_weights[-heads:], atol=1e-7, rtol=1e-4
    )


@torch.no_grad()
def _score_with_a_head_scaled(
    scoring: ScoringUNet, pairs: tuple[Tensor, ...], layer: int, head: int, factor: float
) -> Tensor:
    """f where one head's map is scaled before the walk goes on, (batch,)."""
    z, level, states, mask = pairs
    pooled = []
    walk = scoring.cross_attentions(scoring.add_noise(z, level), scoring.timesteps[level], states)
    for seen in walk:
        if seen.layer == layer:
            seen.attention[:, head] *= factor  # the layer itself goes on with this very tensor
        pooled.append(logsumexp_pool(seen.attention, scoring.lam))
    response = Response(torch.cat(pooled, dim=1), None, None)
    return average_tokens(average_heads(response, scoring.head_weights), mask)


@pytest.mark.parametrize(("layer", "head"), [(0, 1), (1, 0), (3, 1)])
def test_exact_attribution_is_how_the_score_changes_when_a_head_is_scaled(
    layer: int, head: int
) -> None:
    scoring = ScoringUNet(random_unet("shapes"), random_levels())
    pairs = random_pairs(4)
    step = 1e-2
    up, down = (
        _score_with_a_head_scaled(scoring, pairs, layer, head, factor)
        for factor in (1 + step, 1 - step)
    )
    exact = head_attributions(scoring, *pairs)
    place = sum(scoring.heads[:layer]) + head
    measured = (up - down) / (2 * step)
    torch.testing.assert_close(exact[:, place], measured, atol=2e-5, rtol=2e-2)
    # What runs through later layers is not nothing, or this would be the closed form again.
    assert measured.abs().max() > 1e-4


@torch.no_grad()
def test_dynamic_weights_follow_each_pairs_own_attribution() -> None:
    unet, levels, pairs = random_unet("sd 2"), random_levels(), random_pairs(3)
    scoring = ScoringUNet(unet, levels, dynamic_heads=True)
    score, token_scores = scoring(*pairs)
    z, level, states, mask = pairs
    for i in range(3):
        walk = scoring.cross_attentions(
            scoring.add_noise(z[i : i + 1], level[i : i + 1]),
            scoring.timesteps[level[i : i + 1]],
            states[i : i + 1],
        )
        weights, scores = [], []
        for seen in walk:
            for of_head in seen.attention[0]:  # (image_tokens, text_tokens)
                pull = (scoring.lam * of_head).exp()
                pull = pull / pull.sum(dim=0)
                relevance = (of_head * pull).sum(dim=0)
                weights.append(float((relevance * mask[i]).sum() / mask[i].sum()))
                scores.append(logsumexp_pool(of_head[None, None], scoring.lam)[0, 0])
        shares = torch.tensor(weights) / sum(weights)
        expected = sum(share * s for share, s in zip(shares, scores, strict=True))
        torch.testing.assert_close(token_scores[i], expected, atol=1e-6, rtol=1e-5)
        assert shares.max() > 1.5 * shares.min()
    assert (score - ScoringUNet(unet, levels)(*pairs)[0]).abs().max() > 1e-4


def test_dynamic_weights_need_logsumexp_pooling() -> None:
    with pytest.raises(ValueError, match='need pooling "lse", not "max"'):
        ScoringUNet(random_unet(), random_levels(), pooling="max", dynamic_heads=True)


def test_calibrated_weights_are_mean_attributions_without_the_negative_ones() -> None:
    weights = calibrated_weights(
        [torch.tensor([[3.0, -1.0, 1.0]]), torch.tensor([[5.0, 0.0, -1.0]])]
    )
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0, 0.0]))
    weights = calibrated_weights([torch.tensor([[3.0, 0.5, 0.5], [1.0, 1.5, 1.5]])])
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.25, 0.25]))
    assert calibrated_weights([-torch.ones(1, 4)]).tolist() == [0.25] * 4


def test_attribution_leaves_the_model_without_gradients() -> None:
    unet = random_unet("shapes")
    head_attributions(ScoringUNet(unet, random_levels()), *random_pairs(2))
    assert all(p.grad is None and not p.requires_grad for p in unet.parameters())
