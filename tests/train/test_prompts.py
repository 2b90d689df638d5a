"""Attention prompts against U-Nets whose weight matrices were changed by hand (Eq. 5)."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from unets import TEXT_WIDTH, random_levels, random_pairs, random_unet

from dsd_trt.train.scoring.choices import PromptConfig
from dsd_trt.train.scoring.layers import inner_widths
from dsd_trt.train.scoring.prompts import AttentionPrompts, MatrixPrompt
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

MEMBERS = ["sd 1", "sdxl", "shapes"]
CONFIG = PromptConfig(rank=3, hidden=16, latent_channels=4)


def fresh_prompts(name: str) -> AttentionPrompts:
    torch.manual_seed(1)
    return AttentionPrompts(inner_widths(random_unet(name)), TEXT_WIDTH, CONFIG)


def random_prompts(name: str) -> AttentionPrompts:
    """Every parameter random, u too."""
    prompts = fresh_prompts(name)
    with torch.no_grad():
        for parameter in prompts.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    return prompts.requires_grad_(False)


def matrix_prompt(part: nn.Module) -> MatrixPrompt:
    """A member of a ModuleList, whose type PyTorch forgets."""
    assert isinstance(part, MatrixPrompt)
    return part


@pytest.mark.parametrize("name", MEMBERS)
@torch.no_grad()
def test_fresh_prompts_change_nothing_at_all(name: str) -> None:
    unet, pairs = random_unet(name), random_pairs(3)
    score, token_scores = ScoringUNet(unet, random_levels())(*pairs)
    prompts = fresh_prompts(name)
    prompted, prompted_tokens = ScoringUNet(unet, random_levels(), prompts=prompts)(*pairs)
    assert torch.equal(prompted, score)
    assert torch.equal(prompted_tokens, token_scores)


def test_fresh_prompts_can_be_trained() -> None:
    # Zero everywhere would be an identity too, and a dead one.
    prompts = fresh_prompts("shapes")
    scoring = ScoringUNet(random_unet(), random_levels(), prompts=prompts)
    scoring(*random_pairs(2))[0].sum().backward()
    last = prompts.mapping[-1]
    assert isinstance(last, nn.Linear)
    for trained in (last.weight, *(matrix_prompt(part).up for part in prompts.key)):
        assert trained.grad is not None
        assert trained.grad.abs().max() > 0


@pytest.mark.parametrize("name", MEMBERS)
@torch.no_grad()
def test_prompts_equal_weight_matrices_changed_by_hand(name: str) -> None:
    unet, prompts, levels = random_unet(name), random_prompts(name), random_levels()
    scoring = ScoringUNet(unet, levels, prompts=prompts)
    pairs = random_pairs(3)
    together, together_tokens = scoring(*pairs)
    plain, _ = ScoringUNet(unet, levels)(*pairs)
    assert (together - plain).abs().min() > 1e-3
    for i in range(3):
        one = tuple(part[i : i + 1] for part in pairs)
        changed = ScoringUNet(prompted_unet(scoring, one[0]), levels)
        score, token_scores = changed(*one)
        assert (score - together[i]).abs().max() < 1e-6
        assert (token_scores - together_tokens[i]).abs().max() < 1e-5


def prompted_unet(scoring: ScoringUNet, latent: Tensor) -> nn.Module:
    """A copy of the U-Net with W + P + u pi(x)^T in place of W, for one image."""
    unet, prompts = deepcopy(scoring.unet), scoring.prompts
    assert prompts is not None
    pi = mapping_network(prompts, latent[0])
    for layer, name in enumerate(scoring.layer_names):
        attn = unet.get_submodule(name).attn2
        for i, (part, project) in enumerate(
            [(prompts.key[layer], attn.to_k), (prompts.value[layer], attn.to_v)]
        ):
            prompt = matrix_prompt(part)
            change = prompt.up @ prompt.down + torch.outer(prompt.u, pi[layer][i])
            project.weight = nn.Parameter(project.weight + change, requires_grad=False)
    return unet


def mapping_network(prompts: AttentionPrompts, latent: Tensor) -> list[tuple[Tensor, Tensor]]:
    """m_theta of one image, (C, h, w), by loops: pi_k and pi_v of each layer."""
    channels, height, width = latent.shape
    cells = [
        latent[c, y : y + height // 4, x : x + width // 4].mean()
        for c in range(channels)
        for y in range(0, height, height // 4)
        for x in range(0, width, width // 4)
    ]
    first, _, second = prompts.mapping
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    hidden = first.weight @ torch.stack(cells) + first.bias
    outputs = second.weight @ (hidden * torch.sigmoid(hidden)) + second.bias
    rows = outputs.view(-1, TEXT_WIDTH)
    return [(rows[2 * layer], rows[2 * layer + 1]) for layer in range(len(prompts.key))]


@pytest.mark.parametrize("side", [4, 8, 12])
@torch.no_grad()
def test_the_mapping_network_sees_the_mean_of_sixteen_cells(side: int) -> None:
    prompts = random_prompts("shapes")
    latent = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(3))
    pi = prompts.pi(latent)
    assert pi.shape == (len(prompts.key), 2, 2, TEXT_WIDTH)
    for i in range(2):
        for layer, (key, value) in enumerate(mapping_network(prompts, latent[i])):
            assert (pi[layer, 0, i] - key).abs().max() < 1e-5
            assert (pi[layer, 1, i] - value).abs().max() < 1e-5


@torch.no_grad()
def test_folded_static_prompts_score_the_same() -> None:
    scoring = ScoringUNet(random_unet("sd 1"), random_levels(), prompts=random_prompts("sd 1"))
    pairs = random_pairs(3)
    folded = deepcopy(scoring)
    folded.fold_static_prompts()
    for (name, before), (_, after) in zip(
        scoring.unet.named_parameters(), folded.unet.named_parameters(), strict=True
    ):
        prompted = name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        assert torch.equal(before, after) != prompted
    assert (folded(*pairs)[0] - scoring(*pairs)[0]).abs().max() < 1e-6


@torch.no_grad()
def test_prompts_depend_on_the_image() -> None:
    prompts = random_prompts("shapes")
    scoring = ScoringUNet(random_unet(), random_levels(), prompts=prompts)
    latent, level, text_states, _ = random_pairs(2)
    z_t, timestep = scoring.add_noise(latent, level), scoring.timesteps[level]
    own = prompts.pi(latent)
    others = prompts.pi(latent.flip(0))
    assert (own - others).abs().mean() > 0.1 * own.abs().mean()
    # The same noised picture, but prompts made of another's: attention must tell.
    maps = [stop.attention for stop in scoring.cross_attentions(z_t, timestep, text_states, own)]
    swapped = scoring.cross_attentions(z_t, timestep, text_states, others)
    for attention, stop in zip(maps, swapped, strict=True):
        assert (stop.attention - attention).abs().max() > 1e-2


@torch.no_grad()
def test_adding_a_vector_to_every_key_trains_nothing_and_the_rank_one_form_does() -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(32, TEXT_WIDTH, generator=generator) / TEXT_WIDTH**0.5
    query = torch.randn(1, 10, 32, generator=generator)
    text_states = torch.randn(1, 6, TEXT_WIDTH, generator=generator)
    pi = torch.randn(1, TEXT_WIDTH, generator=generator)

    def attend(key: Tensor) -> Tensor:
        return (query @ key.transpose(1, 2) / 32**0.5).softmax(dim=2)

    key = text_states @ weight.T
    plain = attend(key)
    shifted = attend(key + 3 * torch.randn(32, generator=generator))
    assert (shifted - plain).abs().max() < 1e-6  # the same number on all logits of a query
    prompt = MatrixPrompt(32, TEXT_WIDTH, rank=2)
    assert (attend(prompt(weight, text_states, pi)) - plain).abs().max() > 0.05


@torch.no_grad()
def test_prompted_scores_do_not_depend_on_the_batch() -> None:
    scoring = ScoringUNet(random_unet("sdxl"), random_levels(), prompts=random_prompts("sdxl"))
    pairs = random_pairs(7)
    alone = torch.cat([scoring(*(part[i : i + 1] for part in pairs))[0] for i in range(7)])
    order = torch.tensor([5, 1, 4, 0, 6, 3, 2])
    in_twos = torch.cat([scoring(*(part[i : i + 2] for part in pairs))[0] for i in range(0, 7, 2)])
    assert alone.max() - alone.min() > 1e-2
    assert (scoring(*pairs)[0] - alone).abs().max() <= 1e-6
    assert (scoring(*(part[order] for part in pairs))[0] - alone[order]).abs().max() <= 1e-6
    assert (in_twos - alone).abs().max() <= 1e-6


@torch.no_grad()
def test_value_prompts_reach_later_layers_only() -> None:
    # The last scored layer stops at its map: what its values are is never asked.
    prompts = random_prompts("shapes")
    pairs = random_pairs(2)
    before = [
        ScoringUNet(random_unet(), random_levels(), score_layers=[layer], prompts=prompts)(*pairs)
        for layer in (2, 3)
    ]
    matrix_prompt(prompts.value[2]).up.mul_(-1)
    after = [
        ScoringUNet(random_unet(), random_levels(), score_layers=[layer], prompts=prompts)(*pairs)
        for layer in (2, 3)
    ]
    assert torch.equal(after[0][0], before[0][0])
    assert (after[1][0] - before[1][0]).abs().min() > 1e-5
