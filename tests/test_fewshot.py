"""Few-shot training: what it learns, what it leaves alone, and the logistic it ends with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from checkpoints import TEXT_WIDTH, write_checkpoint
from torch import Tensor

from dsd_trt.train.fewshot import (
    Examples,
    FewShotSettings,
    HeadWeights,
    MatchProbability,
    fit_adapter,
    fit_match_probability,
    score_all,
)
from dsd_trt.train.model import Checkpoint, build_scoring_unet, encode_texts, load_checkpoint

TEXTS = ["a red circle", "a blue square", "a green star", "a white ring"]
SETTINGS = FewShotSettings(steps=40, pairs=12, learning_rate=2e-2, rank=2, hidden=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def examples(checkpoint: Checkpoint) -> Examples:
    """Four images, each with one of the texts: every pair, the own ones thrice as often."""
    generator = torch.Generator().manual_seed(3)
    states, masks = encode_texts(checkpoint, TEXTS)
    images, texts = torch.cartesian_prod(torch.arange(4), torch.arange(4)).unbind(dim=1)
    own = torch.arange(4).repeat(2)
    images, texts = torch.cat([images, own]), torch.cat([texts, own])
    return Examples(
        latents=torch.randn(4, *checkpoint.latent_shape, generator=generator),
        text_states=states,
        token_masks=masks,
        images=images,
        texts=texts,
        labels=(images == texts).float(),
    )


def _entropy(f: Tensor, labels: Tensor, a: float, b: float) -> float:
    """Mean binary cross-entropy (Eq. 6), written out."""
    p = torch.sigmoid(a * f.double() + b)
    return float(-(labels * p.log() + (1 - labels) * (1 - p).log()).mean())


def test_training_lowers_the_entropy_below_what_calibration_alone_reaches(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    steps: list[int] = []
    adapter = fit_adapter(
        checkpoint, examples, SETTINGS, report=lambda step, loss: steps.append(step)
    )
    assert steps == list(range(1, SETTINGS.steps + 1))

    plain = build_scoring_unet(checkpoint)
    uniform = HeadWeights(plain.heads)()
    f = score_all(plain, uniform, examples)
    before = _entropy(f, examples.labels, *fit_match_probability(f, examples.labels))

    trained = build_scoring_unet(checkpoint, adapter)
    f = torch.stack([_score_alone(trained, examples, i) for i in range(len(examples))])
    after = _entropy(f, examples.labels, adapter.a, adapter.b)
    assert after < 0.75 * before


@torch.no_grad()
def _score_alone(scoring: torch.nn.Module, examples: Examples, pair: int) -> Tensor:
    """f of one pair at batch 1, levels one by one: the slow way."""
    x, y = examples.images[pair], examples.texts[pair]
    at_levels = [
        scoring(
            examples.latents[x][None],
            torch.tensor([level]),
            examples.text_states[y][None],
            examples.token_masks[y][None],
        )[0][0]
        for level in range(4)
    ]
    return sum(at_levels, torch.zeros(())) / 4


def test_scores_of_all_pairs_are_those_of_each_alone(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    scoring = build_scoring_unet(checkpoint)
    together = score_all(scoring, HeadWeights(scoring.heads)(), examples, batch=5)
    alone = torch.stack([_score_alone(scoring, examples, i) for i in range(len(examples))])
    assert torch.allclose(together, alone, atol=1e-6, rtol=0)


def test_the_base_model_is_left_as_it_was_and_a_seed_fixes_the_adapter(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    before = {name: value.clone() for name, value in checkpoint.unet.state_dict().items()}
    settings = FewShotSettings(steps=3, pairs=4, rank=2, hidden=8)
    first, again = (fit_adapter(checkpoint, examples, settings) for _ in range(2))
    for name, value in checkpoint.unet.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in checkpoint.unet.parameters())
    assert first.base == checkpoint.weight_hashes
    assert (first.a, first.b) == (again.a, again.b)
    for name, value in first.prompt_state.items():
        assert torch.equal(value, again.prompt_state[name])
    assert any(value.abs().max() > 0 for name, value in first.prompt_state.items() if "up" in name)


def test_head_weights_start_uniform_and_always_sum_to_one() -> None:
    weights = HeadWeights([1, 2, 5])
    assert [len(part) for part in weights()] == [1, 2, 5]
    assert torch.allclose(torch.cat(weights()), torch.full((8,), 1 / 8))
    with torch.no_grad():
        weights.logits += torch.arange(8.0)
    assert float(torch.cat(weights()).sum()) == pytest.approx(1)
    assert bool((torch.cat(weights()) > 0).all())


def test_match_probability_never_turns_the_ranking_round() -> None:
    match = MatchProbability()
    with torch.no_grad():
        match.log_a.fill_(-9.0)
    f = torch.tensor([0.1, 0.2, 0.3])
    assert bool((match(f).diff() > 0).all())


def test_logistic_fit_finds_the_closed_form_of_two_scores() -> None:
    # Two distinct scores: the likelihood is greatest where each predicts its own share of matches.
    f = torch.tensor([0.25] * 4000 + [0.75] * 4000)
    labels = torch.tensor([1.0] * 800 + [0.0] * 3200 + [1.0] * 3600 + [0.0] * 400)
    a, b = fit_match_probability(f, labels)
    logit = [math.log(p / (1 - p)) for p in (0.2, 0.9)]
    assert a * 0.25 + b == pytest.approx(logit[0], abs=1e-4)
    assert a * 0.75 + b == pytest.approx(logit[1], abs=1e-4)


def test_logistic_fit_stays_finite_where_scores_separate_the_labels() -> None:
    f = torch.tensor([0.1, 0.11, 0.4, 0.41])
    a, b = fit_match_probability(f, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    p = torch.sigmoid(a * f + b)
    assert math.isfinite(a)
    assert bool((p[:2] < 0.05).all())
    assert bool((p[2:] > 0.95).all())


def test_text_states_have_the_width_the_prompts_are_made_for(
    checkpoint: Checkpoint, examples: Examples, tmp_path: Path
) -> None:
    adapter = fit_adapter(checkpoint, examples, FewShotSettings(steps=1, pairs=2, hidden=4))
    downs = [value for name, value in adapter.prompt_state.items() if name.endswith("down")]
    assert {value.shape[1] for value in downs} == {TEXT_WIDTH}
    adapter.save(tmp_path)
    assert (tmp_path / "adapter.safetensors").stat().st_size > 0
