"""The walk through the U-Net against diffusers' own forward pass on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from unets import FAMILY, random_levels, random_pairs, random_unet

from dsd_trt.train.scoring.choices import select_layers
from dsd_trt.train.scoring.pooling import CrossAttention
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

every_member = pytest.mark.parametrize("name", FAMILY)
Trace = list[tuple[str, Tensor]]


@contextmanager
def traced(unet: UNet2DConditionModel) -> Iterator[Trace]:
    """Every call of a module without children, in order, with what it returned.

    Dropout is left out: it does nothing in evaluation mode, and the walk does not call it.
    """
    trace: Trace = []

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, arguments, output: trace.append((name, output))

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in unet.named_modules()
        if not list(module.children()) and not isinstance(module, nn.Dropout)
    ]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


class KeepMaps:
    """diffusers' explicit attention, with what went in and the map it computed kept."""

    def __init__(self) -> None:
        self._plain = AttnProcessor()
        self.inputs: list[tuple[Tensor, Tensor]] = []
        self.maps: list[Tensor] = []

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not attn.is_cross_attention:
            return self._plain(attn, hidden_states, *args, **kwargs)
        compute = attn.get_attention_scores

        def keep(*arguments: Any) -> Tensor:
            probabilities = compute(*arguments)  # (batch * heads, image_tokens, text_tokens)
            self.maps.append(probabilities.unflatten(0, (-1, attn.heads)))
            return probabilities

        text_states = args[0] if args else kwargs["encoder_hidden_states"]
        self.inputs.append((hidden_states, text_states))
        attn.get_attention_scores = keep
        try:
            return self._plain(attn, hidden_states, *args, **kwargs)
        finally:
            del attn.get_attention_scores


def diffusers_forward(
    unet: UNet2DConditionModel, z_t: Tensor, timestep: Tensor, text_states: Tensor
) -> tuple[Tensor, KeepMaps]:
    """The untouched forward pass, with explicit attention."""
    kept, previous = KeepMaps(), unet.attn_processors
    unet.set_attn_processor(kept)
    try:
        return unet(z_t, timestep, text_states).sample, kept
    finally:
        unet.set_attn_processor(previous)


def walk(
    scoring: ScoringUNet, z_t: Tensor, timestep: Tensor, text_states: Tensor
) -> tuple[Tensor, list[CrossAttention]]:
    """The whole walk: the U-Net's prediction and every layer it stopped at."""
    steps = scoring.cross_attentions(z_t, timestep, text_states)
    stops = list(steps)
    return steps.prediction, stops


def relative(a: Tensor, b: Tensor) -> float:
    """Greatest difference, as a share of the greatest value."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@every_member
def test_the_random_unets_heed_everything_they_are_given(name: str) -> None:
    # Without this the comparisons below could pass on a network that ignores its inputs.
    unet = random_unet(name)
    z, _, text_states, _ = random_pairs(1)
    sample = unet(z, 500, text_states).sample
    assert relative(unet(z.flip(3), 500, text_states).sample, sample) > 0.05
    assert relative(unet(z, 100, text_states).sample, sample) > 0.01
    assert relative(unet(z, 500, text_states.flip(1)).sample, sample) < 1e-5  # a set of tokens
    assert relative(unet(z, 500, text_states.roll(1, 2)).sample, sample) > 0.05


@every_member
@torch.no_grad()
def test_every_hidden_state_equals_diffusers_own(name: str) -> None:
    unet = random_unet(name)
    scoring = ScoringUNet(unet, random_levels())
    z, level, text_states, _ = random_pairs(3)
    timestep = scoring.timesteps[level]
    with traced(unet) as theirs:
        sample = unet(z, timestep, text_states).sample
    with traced(unet) as ours:
        predicted, _ = walk(scoring, z, timestep, text_states)
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert max(relative(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True)) < 1e-5
    assert relative(predicted, sample) < 1e-5


@every_member
@torch.no_grad()
def test_every_map_equals_diffusers_attention_scores(name: str) -> None:
    unet = random_unet(name)
    scoring = ScoringUNet(unet, random_levels())
    z, level, text_states, _ = random_pairs(3)
    timestep = scoring.timesteps[level]
    sample, kept = diffusers_forward(unet, z, timestep, text_states)
    predicted, stops = walk(scoring, z, timestep, text_states)
    assert relative(predicted, sample) < 1e-5
    assert [stop.layer for stop in stops] == list(range(len(kept.maps)))
    for stop, (image_states, states), attention in zip(stops, kept.inputs, kept.maps, strict=True):
        assert relative(stop.image_states, image_states) < 1e-5
        assert torch.equal(stop.text_states, states)
        assert stop.attention.shape == attention.shape
        assert (stop.attention - attention).abs().max() < 1e-5
        attn = unet.get_submodule(scoring.layer_names[stop.layer]).attn2
        assert stop.attention.shape[1] == attn.heads


@every_member
def test_the_maps_are_softmax_of_scaled_products(name: str) -> None:
    # Written out per head in float64, from the weights alone.
    unet = random_unet(name)
    scoring = ScoringUNet(unet, random_levels())
    z, level, text_states, _ = random_pairs(1)
    _, stops = walk(scoring, z, scoring.timesteps[level], text_states)
    for stop in stops:
        attn = unet.get_submodule(scoring.layer_names[stop.layer]).attn2
        query = stop.image_states[0].double() @ attn.to_q.weight.double().T
        key = stop.text_states[0].double() @ attn.to_k.weight.double().T
        d = query.shape[1] // attn.heads
        for h in range(attn.heads):
            part = slice(h * d, (h + 1) * d)
            logits = query[:, part] @ key[:, part].T / math.sqrt(d)
            expected = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
            assert (stop.attention[0, h] - expected).abs().max() < 2e-6


@torch.no_grad()
def test_maps_stay_fp32_in_a_half_precision_unet() -> None:
    unet = random_unet("sd 2").to(torch.bfloat16)
    scoring = ScoringUNet(unet, random_levels())
    z, level, text_states, _ = random_pairs(2)
    _, stops = walk(scoring, z.bfloat16(), scoring.timesteps[level].clone(), text_states.bfloat16())
    for stop in stops:
        attn = unet.get_submodule(scoring.layer_names[stop.layer]).attn2
        query, key = attn.to_q(stop.image_states).float(), attn.to_k(stop.text_states).float()
        split = (attn.head_to_batch_dim(query), attn.head_to_batch_dim(key))
        expected = attn.get_attention_scores(*split).unflatten(0, (-1, attn.heads))
        assert stop.attention.dtype == torch.float32
        assert (stop.attention - expected).abs().max() < 2e-6


@every_member
@pytest.mark.parametrize("last", [0, 2, -1])
@torch.no_grad()
def test_nothing_runs_after_the_last_scored_map(name: str, last: int) -> None:
    unet = random_unet(name)
    layer = range(len(ScoringUNet(unet, random_levels()).layer_names))[last]
    scoring = ScoringUNet(unet, random_levels(), score_layers=[0, layer])
    z, level, text_states, mask = random_pairs(2)
    with traced(unet) as full:
        unet(z, scoring.timesteps[level], text_states)
    with traced(unet) as ours:
        score, token_scores = scoring(z, level, text_states, mask)
    in_full = [name for name, _ in full]
    end = in_full.index(f"{scoring.layer_names[layer]}.attn2.to_k") + 1
    assert [name for name, _ in ours] == in_full[:end]
    assert end < len(in_full)

    # What is left out changes nothing.
    _, stops = walk(scoring, scoring.add_noise(z, level), scoring.timesteps[level], text_states)
    expected, expected_tokens = slow_score([stops[i] for i in scoring.score_layers], mask)
    assert (score - expected).abs().max() < 1e-6
    assert (token_scores - expected_tokens).abs().max() < 1e-6


@every_member
@torch.no_grad()
def test_the_score_is_the_mean_over_layers_heads_and_counted_tokens(name: str) -> None:
    unet = random_unet(name)
    scoring = ScoringUNet(unet, random_levels())
    z, level, text_states, mask = random_pairs(2)
    z_t = scoring.add_noise(z, level)
    _, kept = diffusers_forward(unet, z_t, scoring.timesteps[level], text_states)
    score, token_scores = scoring(z, level, text_states, mask)
    expected, expected_tokens = slow_score(kept.maps, mask)
    assert score.dtype == token_scores.dtype == torch.float32
    assert (score - expected).abs().max() < 1e-6
    assert (token_scores - expected_tokens).abs().max() < 1e-6
    assert score.min() >= 0
    assert score.max() <= 1


def slow_score(
    maps: Sequence[Tensor | CrossAttention], mask: Tensor, lam: float = 20
) -> tuple[Tensor, Tensor]:
    """Eq. 3 and 4 in plain Python and float64, every head weighing the same."""
    attentions = [m.attention if isinstance(m, CrossAttention) else m for m in maps]
    batch, tokens = mask.shape
    scores, token_scores = [], []
    for b in range(batch):
        sums = [0.0] * tokens
        for attention in attentions:
            for of_head in attention[b].double():
                for j, column in enumerate(of_head.T.tolist()):
                    mean = sum(math.exp(lam * a) for a in column) / len(column)
                    sums[j] += math.log(mean) / lam
        heads = sum(attention.shape[1] for attention in attentions)
        token_scores.append([s / heads for s in sums])
        counted = [s for s, m in zip(token_scores[-1], mask[b].tolist(), strict=True) if m]
        scores.append(sum(counted) / len(counted))
    return torch.tensor(scores), torch.tensor(token_scores)


@torch.no_grad()
def test_max_and_cosine_are_used_where_selected() -> None:
    unet = random_unet()
    z, level, text_states, mask = random_pairs(2)
    plain = ScoringUNet(unet, random_levels())
    _, stops = walk(plain, plain.add_noise(z, level), plain.timesteps[level], text_states)

    largest = torch.cat([stop.attention.amax(dim=2) for stop in stops], dim=1).mean(dim=1)
    _, token_scores = ScoringUNet(unet, random_levels(), pooling="max")(z, level, text_states, mask)
    assert (token_scores - largest).abs().max() < 1e-6

    similar = []
    for stop in stops:
        shared = min(stop.image_states.shape[2], stop.text_states.shape[2])
        similarity = nn.functional.cosine_similarity(
            stop.image_states[:, :, None, :shared], stop.text_states[:, None, :, :shared], dim=3
        )
        similar.append(similarity.mean(dim=1) / 2 + 0.5)
    scoring = ScoringUNet(unet, random_levels(), pooling="cosine")
    _, token_scores = scoring(z, level, text_states, mask)
    assert (token_scores - torch.stack(similar).mean(dim=0)).abs().max() < 1e-6


@every_member
@torch.no_grad()
def test_a_planted_head_weight_selects_one_head(name: str) -> None:
    unet = random_unet(name)
    z, level, text_states, mask = random_pairs(2)
    heads = ScoringUNet(unet, random_levels()).heads
    layer, head = len(heads) // 2, heads[len(heads) // 2] - 1
    planted = [torch.zeros(count) for count in heads]
    planted[layer][head] = 1
    scoring = ScoringUNet(unet, random_levels(), head_weights=planted)
    _, stops = walk(scoring, scoring.add_noise(z, level), scoring.timesteps[level], text_states)
    expected, _ = slow_score([stops[layer].attention[:, head : head + 1]], mask)
    score, _ = scoring(z, level, text_states, mask)
    assert (score - expected).abs().max() < 1e-6


@every_member
@pytest.mark.parametrize("score_layers", ["all", "last:2", (1, 3)])
def test_uniform_head_weights_are_equal_and_sum_to_one(
    name: str, score_layers: str | Sequence[int]
) -> None:
    scoring = ScoringUNet(random_unet(name), random_levels(), score_layers=score_layers)
    flat = scoring.head_weights
    assert len(flat) == sum(scoring.heads)
    assert flat.max() == flat.min()
    assert flat.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", ["sd 2", "sdxl, convolutions"])
@torch.no_grad()
def test_a_pairs_score_does_not_depend_on_its_batch(name: str) -> None:
    scoring = ScoringUNet(random_unet(name), random_levels())
    pairs = random_pairs(7)
    alone = torch.cat([scoring(*(part[i : i + 1] for part in pairs))[0] for i in range(7)])
    assert alone.max() - alone.min() > 1e-2
    in_twos = torch.cat([scoring(*(part[i : i + 2] for part in pairs))[0] for i in range(0, 7, 2)])
    in_sevens, _ = scoring(*pairs)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    shuffled, _ = scoring(*(part[order] for part in pairs))
    assert (in_twos - alone).abs().max() <= 1e-6
    assert (in_sevens - alone).abs().max() <= 1e-6
    assert (shuffled - alone[order]).abs().max() <= 1e-6


@torch.no_grad()
def test_only_counted_tokens_are_averaged() -> None:
    scoring = ScoringUNet(random_unet(), random_levels())
    z, level, text_states, mask = random_pairs(3)
    score, token_scores = scoring(z, level, text_states, mask)
    one = torch.zeros_like(mask)
    one[:, 4] = 1
    of_one, same = scoring(z, level, text_states, one)
    assert torch.equal(same, token_scores)  # the mask decides what is averaged, and no more
    assert torch.equal(of_one, token_scores[:, 4])
    for row, tokens, counted in zip(score, token_scores, mask.bool(), strict=True):
        assert row.item() == pytest.approx(tokens[counted].double().mean().item(), abs=1e-7)


@pytest.mark.parametrize(
    ("selection", "count", "layers"),
    [
        ("all", 3, (0, 1, 2)),
        ("last:1", 16, (15,)),
        ("last:2", 16, (14, 15)),
        ("last:8", 16, tuple(range(8, 16))),
        ("last:3", 3, (0, 1, 2)),
        ([2, 0, 2], 3, (0, 2)),
        ((1,), 3, (1,)),
        ("4, 0,2", 5, (0, 2, 4)),
    ],
)
def test_layers_are_selected(
    selection: str | Sequence[int], count: int, layers: tuple[int, ...]
) -> None:
    assert select_layers(selection, count) == layers


@pytest.mark.parametrize(
    "selection", ["last:4", "last:0", "last:-1", "last:", "first", "", "0,3", "-1", "1.5", [], [3]]
)
def test_layers_that_do_not_exist_are_refused(selection: str | Sequence[int]) -> None:
    with pytest.raises(ValueError, match="indices from 0 to 2"):
        select_layers(selection, 3)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_class_embeds", {"num_class_embeds": 10}),
        ("class_embed_type", {"class_embed_type": "timestep"}),
        (
            "addition_embed_type",
            {"addition_embed_type": "image", "encoder_hid_dim": 24, "encoder_hid_dim_type": None},
        ),
        ("mid_block_type", {"mid_block_type": "UNetMidBlock2D"}),
        ("only_cross_attention", {"only_cross_attention": True}),
        ("resnet_time_scale_shift", {"resnet_time_scale_shift": "scale_shift"}),
        (
            "down_block_types",
            {"down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D")},
        ),
        (
            "up_block_types",
            {"up_block_types": ("SimpleCrossAttnUpBlock2D", "CrossAttnUpBlock2D")},
        ),
    ],
)
def test_unets_of_another_family_are_refused(field: str, changes: dict[str, Any]) -> None:
    unet = random_unet(**changes)
    with pytest.raises(ValueError, match=f"{field} is"):
        ScoringUNet(unet, random_levels())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@every_member
@torch.no_grad()
def test_denoising_error_is_that_of_diffusers_own_prediction(name: str, prediction: Any) -> None:
    unet, levels = random_unet(name), random_levels()
    scoring = ScoringUNet(unet, levels, denoising=True, prediction=prediction)
    z, level, text_states, mask = random_pairs(3)
    score, token_scores, error = scoring(z, level, text_states, mask)

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    noise, timestep = levels.eps[level], levels.timesteps[level]
    sample = unet(scheduler.add_noise(z, noise, timestep), timestep, text_states).sample
    target = noise if prediction == "epsilon" else scheduler.get_velocity(z, noise, timestep)
    expected = (sample - target).square().mean(dim=(1, 2, 3)).sqrt()
    assert relative(error, expected) < 1e-5

    plain, plain_tokens = ScoringUNet(unet, levels)(z, level, text_states, mask)
    assert torch.equal(score, plain)
    assert torch.equal(token_scores, plain_tokens)


def test_mixed_precision_leaves_logits_and_pooling_in_fp32() -> None:
    scoring = ScoringUNet(random_unet("shapes"), random_levels())
    z, level, text_states, mask = random_pairs(3)
    z_t, timestep = scoring.add_noise(z, level), scoring.timesteps[level]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for seen in scoring.cross_attentions(z_t, timestep, text_states):
            assert seen.attention.dtype == torch.float32
            # In BF16 sums over tokens would miss 1 by parts in a thousand.
            assert (seen.attention.sum(dim=-1) - 1).abs().max() < 1e-5
        half, _ = scoring(z, level, text_states, mask)
    full, _ = scoring(z, level, text_states, mask)
    assert 0 < (half - full).abs().max() < 0.05
