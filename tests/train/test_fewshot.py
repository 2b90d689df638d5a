"""Few-shot training: what it learns, what it leaves alone, and the logistic it ends with."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import picture_questions, write_checkpoint
from clock import Clock
from gradients import require_gradient_is_slope
from torch import Tensor, nn

from dsd_trt.bundle.method import HeadMode, ScoreKind
from dsd_trt.errors import DsdError, InputError
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import Checkpoint, read_checkpoint
from dsd_trt.train.diffusion.encoders import TextEncoder
from dsd_trt.train.fewshot.batch import PairBatch, sample_batch
from dsd_trt.train.fewshot.encodings import encode_candidates, encode_questions
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.fit import fit_adapter
from dsd_trt.train.fewshot.match_probability import (
    MatchProbability,
    combine,
    fit_match_probability,
)
from dsd_trt.train.fewshot.model import (
    FewShotModel,
    Validation,
    build_model,
    score_all,
    validate,
)
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.question import Question
from dsd_trt.train.run.state import save_state
from dsd_trt.train.scoring.adapter_file import STATE_NAME
from dsd_trt.train.scoring.choices import Loss
from dsd_trt.train.scoring.head_weights import LearnedHeadWeights

TEXTS = ["a red circle", "a blue square", "a green star", "a white ring"]
SETTINGS = FewShotSettings(
    steps=80, questions=4, negatives=1, hard=1.0, learning_rate=3e-2, rank=2, hidden=8
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return picture_questions(TEXTS)


@pytest.fixture(scope="module")
def examples(checkpoint: Checkpoint, questions: list[Question]) -> Examples:
    return encode_questions(checkpoint, questions)


# Examples


def test_images_and_texts_are_encoded_once(
    checkpoint: Checkpoint, questions: list[Question], examples: Examples
) -> None:
    assert (len(examples.latents), len(examples.text_states), len(examples)) == (4, 4, 4)
    assert examples.labels.tolist() == [0, 1] * 4
    assert examples.starts.tolist() == [0, 2, 4, 6, 8]
    picture, text = questions[2].candidates[1]
    assert isinstance(picture, np.ndarray)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        vae = checkpoint.image_encoder.vae
        z = vae.encode(x).latent_dist.mean * vae.config["scaling_factor"]
        ids = checkpoint.tokenizer([text], padding="max_length", return_tensors="pt").input_ids
        assert isinstance(checkpoint.text_encoder, TextEncoder)
        states = checkpoint.text_encoder.text_encoder(ids).last_hidden_state
    pair = int(examples.right[2])
    assert torch.allclose(examples.latents[examples.images[pair]], z[0], atol=1e-5)
    assert torch.allclose(examples.text_states[examples.texts[pair]], states[0], atol=1e-5)


def test_a_tie_is_a_wrong_answer(examples: Examples) -> None:
    scores = torch.tensor([0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.0, 0.5])
    assert examples.right_answers(scores) == (True, False, False, True)


def test_an_answer_is_right_if_every_score_gives_it_and_none_is_nan(examples: Examples) -> None:
    right = torch.zeros(8)
    right[examples.right] = 1
    assert examples.right_answers(right, right) == (True,) * 4
    for pair, question in ((int(examples.right[1]), 1), (int(examples.starts[2]), 2)):
        for wrong in (1 - right, torch.full((8,), torch.nan)):
            other = right.clone()
            other[pair] = wrong[pair]
            expected = tuple(q != question for q in range(4))
            assert examples.right_answers(right, other) == expected
            assert examples.right_answers(other, right) == expected


def test_what_cannot_be_learned_from_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no questions"):
        encode_questions(checkpoint, [])
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match=r"photo 7: .*without a negative pair"):
        encode_questions(checkpoint, [Question("k", ((picture, "a"),), 0, "photo 7")])
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    torn = Question("k", ((tmp_path / "torn.png", "a"), (picture, "a")), 0, "s")
    with pytest.raises(InputError, match=r"torn\.png"):
        encode_questions(checkpoint, [torn])


# Batches


def test_wrong_pairs_are_hard_ones_and_random_ones_and_never_right(examples: Examples) -> None:
    settings = FewShotSettings(questions=200, negatives=3, hard=0.5)
    batch = sample_batch(examples, settings, np.random.default_rng(1))
    pairs = torch.stack([batch.images, batch.texts], dim=2).tolist()
    own = {(int(examples.images[q * 2]), int(examples.texts[q * 2])) for q in range(len(examples))}
    of_right = (examples.images[examples.right], examples.texts[examples.right])
    matches = {*zip(*(it.tolist() for it in of_right), strict=True)}
    hard = 0
    for right, *wrong in pairs:
        assert tuple(right) in matches
        assert not {tuple(pair) for pair in wrong} & matches
        assert all(pair[0] == right[0] or pair[1] == right[1] for pair in wrong)
        hard += sum(tuple(pair) in own for pair in wrong)
    # Half by intention; some random ones happen to be hard as well, or replace a right one.
    assert 0.45 < hard / 600 < 0.85
    assert Counter(batch.level.tolist()).keys() == {0, 1, 2, 3}


def test_a_text_that_may_describe_an_image_as_well_is_no_random_negative(
    checkpoint: Checkpoint,
) -> None:
    texts = ["a dog", "a cat", "A dog on grass.", "the cat sleeps", "the dog"]
    examples = encode_questions(checkpoint, picture_questions(texts))
    names = list(dict.fromkeys([texts[-1], *texts]))  # in order of the questions' candidates
    settings = FewShotSettings(questions=200, negatives=3, hard=0)
    batch = sample_batch(examples, settings, np.random.default_rng(1))
    drawn = {
        (image, names[text])
        for pairs in torch.stack([batch.images, batch.texts], dim=2).tolist()
        for image, text in pairs[1:]
    }
    drawn -= {(i, texts[i - 1]) for i in range(5)}  # the questions' own take their place
    assert drawn == {
        (i, it) for i, own in enumerate(texts) for it in texts
        if ("dog" in own) != ("dog" in it) and it != texts[i - 1]
    }  # fmt: skip


def test_a_batch_follows_from_its_generator(examples: Examples) -> None:
    one, again = (sample_batch(examples, SETTINGS, np.random.default_rng([2, 5])) for _ in "ab")
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.texts, again.texts)
    assert torch.equal(one.level, again.level)


def test_losses_have_their_closed_forms() -> None:
    batch = PairBatch(torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), torch.zeros(2).long())
    logits = torch.tensor([2.0, -1.0, 0.5, 0.3, 0.0, -2.0])
    right, wrong = [0, 3], [1, 2, 4, 5]
    entropy = sum(math.log1p(math.exp(-float(logits[i]))) for i in right)
    entropy += sum(math.log1p(math.exp(float(logits[i]))) for i in wrong)
    assert float(batch.loss(logits, "bce")) == pytest.approx(entropy / 6, rel=1e-5)
    shares = [
        math.exp(logits[3 * q]) / sum(math.exp(logits[3 * q + k]) for k in range(3))
        for q in range(2)
    ]
    expected = -sum(map(math.log, shares)) / 2
    assert float(batch.loss(logits, "softmax")) == pytest.approx(expected, rel=1e-5)
    both = expected + 0.1 * entropy / 6
    assert float(batch.loss(logits, "softmax+bce")) == pytest.approx(both, rel=1e-5)


# Training


def _entropy(s: Tensor, labels: Tensor, a: float, b: float) -> float:
    """Mean binary cross-entropy (Eq. 6), written out."""
    logit = a * s.double() + b  # -log p = log(1 + exp(-logit)), which is finite at p = 0 too
    return float((torch.log1p(logit.abs().neg().exp()) + logit.relu() - labels * logit).mean())


@torch.no_grad()
def _score_alone(
    scoring: nn.Module, examples: Examples, pair: int, score: ScoreKind, weight: float
) -> float:
    """s of one pair at batch 1, levels one by one, without a text each time: the slow way."""
    x, y = examples.images[pair], examples.texts[pair]
    z, mask = examples.latents[x][None], examples.token_masks[y][None]
    total = 0.0
    for level in range(4):
        at = torch.tensor([level])
        f, _, *error = scoring(z, at, examples.text_states[y][None], mask)
        if score == "attention":
            total += float(f)
            continue
        d = float(scoring(z, at, examples.unconditional, mask)[2]) - float(error[0])
        total += d if score == "denoising" else float(f) + weight * d
    return total / 4


WAYS = pytest.mark.parametrize(
    ("head_mode", "score", "loss", "rank"),
    [
        ("learned", "attention", "bce", 2),
        ("uniform", "attention+denoising", "bce", None),
        ("calibrated", "attention", "softmax", 2),
        ("dynamic", "denoising", "bce", 2),
    ],
)


def _way(head_mode: HeadMode, score: ScoreKind, loss: Loss, rank: int | None) -> FewShotSettings:
    return replace(SETTINGS, head_mode=head_mode, score=score, loss=loss, rank=rank)


@WAYS
def test_gradients_are_the_slope_of_the_loss(
    checkpoint: Checkpoint,
    examples: Examples,
    head_mode: HeadMode,
    score: ScoreKind,
    loss: Loss,
    rank: int | None,
) -> None:
    settings = _way(head_mode, score, loss, rank)
    model = build_model(checkpoint, examples, settings)
    batch = sample_batch(examples, settings, np.random.default_rng(3))
    inputs = batch.inputs(examples, torch.device("cpu"))

    def loss_of_batch() -> Tensor:
        (logits,) = model(*inputs)
        return batch.loss(logits, settings.loss)

    require_gradient_is_slope(model.parameters(), loss_of_batch)


@WAYS
def test_the_adapter_serves_what_was_trained(
    checkpoint: Checkpoint,
    examples: Examples,
    monkeypatch: pytest.MonkeyPatch,
    head_mode: HeadMode,
    score: ScoreKind,
    loss: Loss,
    rank: int | None,
) -> None:
    settings = replace(_way(head_mode, score, loss, rank), steps=3)
    last: list[tuple[Tensor, Tensor | None]] = []

    def remembered(*arguments: Any) -> tuple[Tensor, Tensor | None]:
        last[:] = [score_all(*arguments)]
        return last[0]

    monkeypatch.setattr("dsd_trt.train.fewshot.fit.score_all", remembered)
    fitted = fit_adapter(checkpoint, examples, settings)
    adapter = fitted.adapter
    assert len(fitted.losses) == settings.steps
    trained = build_scoring_unet(checkpoint, adapter)
    weight = adapter.denoising_weight
    alone = torch.tensor([_score_alone(trained, examples, i, score, weight) for i in range(8)])
    ((f, d),) = last  # a and b were fitted to these
    assert torch.allclose(alone, combine(score, weight, f, d), atol=1e-5, rtol=0)
    served = torch.sigmoid(adapter.a * alone.double() + adapter.b)
    a, b = fit_match_probability(alone, examples.labels)
    assert torch.allclose(served, torch.sigmoid(a * alone.double() + b), atol=1e-2, rtol=0)


@pytest.mark.parametrize("count", [4, 5])
def test_probabilities_are_fitted_to_five_questions_that_were_held_out(
    checkpoint: Checkpoint, examples: Examples, count: int
) -> None:
    texts = ["a red cat", "a green dog", "two dogs", "a cat", "a tree"]
    held = encode_questions(checkpoint, picture_questions(texts[:count]))
    settings = replace(SETTINGS, steps=3)
    adapter = fit_adapter(checkpoint, examples, settings, validation=held).adapter
    trained = build_scoring_unet(checkpoint, adapter)
    fits = []
    for asked in (examples, held):
        of = [_score_alone(trained, asked, i, "attention", 1.0) for i in range(len(asked.images))]
        fits.append(fit_match_probability(torch.tensor(of), asked.labels))
    of_learned, of_held = (
        (adapter.a, adapter.b) == pytest.approx(fit, rel=0.02, abs=0.02) for fit in fits
    )
    assert (of_learned, of_held) == (count < 5, count == 5)


def test_a_probability_that_would_fall_with_the_score_is_none(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """The right texts held out are those that score lower."""
    asked = encode_questions(checkpoint, picture_questions([*TEXTS, "a tree", "two dogs"]))
    scoring = build_scoring_unet(checkpoint)
    scores = [_score_alone(scoring, asked, i, "attention", 1.0) for i in range(len(asked.images))]
    right = [first + int(np.argmin(scores[first : first + 2])) for first in asked.starts[:-1]]
    held = replace(asked, right=torch.tensor(right))
    settings = replace(SETTINGS, steps=1, learning_rate=1e-12)
    adapter = fit_adapter(checkpoint, held, settings, validation=held).adapter
    assert adapter.calibration_of("pair") is None
    assert "of 6 questions, right texts do not score higher than wrong ones" in caplog.text


def test_a_part_is_scored_without_the_images_of_others(
    checkpoint: Checkpoint, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = encode_candidates(checkpoint, questions).examples(questions[1:3])
    settings = replace(SETTINGS, score="attention+denoising")
    model = build_model(checkpoint, part, settings, None)
    rows: list[int] = []
    attend = model.attend

    def count(latent: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        rows.append(len(latent))
        return attend(latent, *arguments)

    monkeypatch.setattr(model, "attend", count)
    _, d = score_all(model, part)
    assert rows == [4] * 4 + [2] * 4  # pairs at four levels, then their two images without a text
    _, alone = score_all(model, encode_questions(checkpoint, questions[1:3]))
    assert d is not None
    assert alone is not None
    assert torch.allclose(d, alone, atol=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 2.0])  # with 2, one step is half of the warm-up
def test_the_first_step_is_adams_against_the_gradient(
    checkpoint: Checkpoint, examples: Examples, warmup: float
) -> None:
    """AdamW's first step is the learning rate against each gradient's sign, after weight decay."""
    settings = replace(SETTINGS, steps=1, warmup=warmup)
    rate = settings.learning_rate / (2 if warmup else 1)
    model = build_model(checkpoint, examples, settings)
    prompts = model.scoring.prompts
    assert prompts is not None
    before = {n: p.detach().clone() for n, p in prompts.named_parameters()}
    batch = sample_batch(examples, settings, np.random.default_rng([0, 0, 0, 0]))
    (logits,) = model(*batch.inputs(examples, torch.device("cpu")))
    batch.loss(logits, settings.loss).backward()
    after = fit_adapter(checkpoint, examples, settings).adapter.prompt_state
    compared = 0
    for name, parameter in prompts.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        clear = gradient.abs() > 1e-5  # Adam adds 1e-8 to what it divides by
        compared += int(clear.sum())
        expected = before[name] * (1 - 0.01 * rate)
        expected = expected - rate * gradient.sign()
        assert torch.allclose(after[name][clear], expected[clear], rtol=0, atol=1e-4), name
    assert compared > 100


def test_scores_of_all_pairs_are_those_of_each_alone(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    settings = replace(SETTINGS, score="attention+denoising", head_mode="uniform")
    f, d = score_all(build_model(checkpoint, examples, settings), examples)
    assert d is not None
    scoring = build_scoring_unet(checkpoint, score="attention+denoising")
    alone = [_score_alone(scoring, examples, i, "attention+denoising", 0.7) for i in range(8)]
    assert torch.allclose(f + 0.7 * d, torch.tensor(alone), atol=1e-6, rtol=0)


def test_the_base_model_is_left_as_it_was_and_a_seed_fixes_the_adapter(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    before = {name: value.clone() for name, value in checkpoint.unet.state_dict().items()}
    settings = replace(SETTINGS, steps=3)
    first, again = (fit_adapter(checkpoint, examples, settings).adapter for _ in range(2))
    for name, value in checkpoint.unet.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in checkpoint.unet.parameters())
    assert first.base == checkpoint.weight_hashes
    assert (first.a, first.b) == (again.a, again.b)
    for name, value in first.prompt_state.items():
        assert torch.equal(value, again.prompt_state[name])
    assert any(value.abs().max() > 0 for name, value in first.prompt_state.items() if "up" in name)


def test_recomputing_activations_changes_memory_and_no_gradient(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    gradients = []
    for recompute in (False, True):
        settings = replace(SETTINGS, score="attention+denoising", recompute=recompute)
        model = build_model(checkpoint, examples, settings)
        batch = sample_batch(examples, settings, np.random.default_rng(0))
        (logits,) = model(*batch.inputs(examples, torch.device("cpu")))
        batch.loss(logits, "bce").backward()
        parts = (p.grad for p in model.parameters() if p.grad is not None)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)


def test_a_process_can_train_in_one_precision_after_another(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    losses = []
    for precision in ("no", "bf16", "no"):
        settings = replace(SETTINGS, steps=2, mixed_precision=precision)
        losses.append(fit_adapter(checkpoint, examples, settings).losses)
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=0.02)  # before any step


def test_accumulated_batches_step_once_with_the_mean_of_their_gradients(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    seen: list[int] = []
    settings = replace(SETTINGS, steps=2, accumulate=3)
    fitted = fit_adapter(
        checkpoint, examples, settings, report=lambda step, loss, validation: seen.append(step)
    )
    assert seen == [1, 2]
    model = build_model(checkpoint, examples, settings)
    losses = []
    for part in range(3):
        batch = sample_batch(examples, settings, np.random.default_rng([0, 0, part, 0]))
        with torch.no_grad():
            (logits,) = model(*batch.inputs(examples, torch.device("cpu")))
        losses.append(float(batch.loss(logits, "bce")))
    assert fitted.losses[0] == pytest.approx(np.mean(losses), rel=1e-5)


def test_matrix_mode_starts_from_the_logistic_that_fits_its_scores(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    settings = replace(SETTINGS, steps=1, mode="matrix", loss="softmax")
    model = build_model(checkpoint, examples, settings)
    matrix = model.matrix
    assert matrix is not None
    f, _ = score_all(model, examples, "matrix")
    best = f.view(-1, 2).argmax(dim=1)  # what it would answer, so that the slope is steep
    examples = replace(examples, right=examples.starts[:-1] + best)
    fitted = fit_adapter(checkpoint, examples, settings)
    a, _ = fit_match_probability(f, examples.labels)
    batch = sample_batch(examples, settings, np.random.default_rng([0, 0, 0, 0]))
    expected = []
    for images, texts, level in zip(batch.images, batch.texts, batch.level, strict=True):
        with torch.no_grad():
            scores = [
                matrix.score(
                    examples.latents[x][None],
                    level[None],
                    examples.text_states[y][None, None],
                    examples.token_masks[y][None, None],
                )
                for x, y in zip(images, texts, strict=True)
            ]
        logits = a * torch.cat(scores).flatten().double()
        expected.append(float(torch.logsumexp(logits, 0) - logits[0]))
    assert a > math.exp(3)  # what it starts from otherwise
    assert fitted.losses[0] == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_first_questions_are_those_of_a_shorter_list(
    checkpoint: Checkpoint, questions: list[Question], examples: Examples
) -> None:
    alone = encode_questions(checkpoint, questions[:2])
    first = examples.first(2)
    assert len(first) == 2
    assert torch.equal(first.starts, alone.starts)
    assert torch.equal(first.right, alone.right)
    assert torch.equal(first.labels, alone.labels)
    assert torch.allclose(first.latents[first.images], alone.latents[alone.images], atol=1e-6)


class KillError(Exception):
    """What stands in for a kill."""


@pytest.mark.parametrize("dies_at", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_and_resumed_training_gives_the_same_adapter(
    checkpoint: Checkpoint, examples: Examples, tmp_path: Path, dies_at: int
) -> None:
    settings = replace(SETTINGS, steps=8, validate_every=2, score="attention+denoising")

    def die(step: int, loss: float, validation: Validation | None) -> None:
        if step == dies_at:
            raise KillError

    whole = fit_adapter(checkpoint, examples, settings, validation=examples)
    with pytest.raises(KillError):
        fit_adapter(
            checkpoint,
            examples,
            settings,
            validation=examples,
            state_path=tmp_path / STATE_NAME,
            report=die,
        )
    resumed = fit_adapter(
        checkpoint, examples, settings, validation=examples, state_path=tmp_path / STATE_NAME
    )
    assert resumed.losses == whole.losses
    assert resumed.validations == whole.validations
    for name, value in whole.adapter.prompt_state.items():
        assert torch.equal(resumed.adapter.prompt_state[name], value), name
    assert (resumed.adapter.a, resumed.adapter.b) == (whole.adapter.a, whole.adapter.b)


def test_a_state_is_saved_every_twenty_seconds_and_resumed_from_to_the_bit(
    checkpoint: Checkpoint, examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far from any validation; steps of nine seconds, killed in the fifth."""
    settings = replace(SETTINGS, steps=8, validate_every=100)
    clock = Clock()
    saved: list[int] = []

    def save(path: Path, state: dict[str, Any]) -> None:
        saved.append(len(state["losses"]))
        save_state(path, state)

    def die(step: int, loss: float, validation: Validation | None) -> None:
        clock.now += 9.0
        if step == 5:
            raise KillError

    whole = fit_adapter(checkpoint, examples, settings, validation=examples)
    monkeypatch.setattr("dsd_trt.train.fewshot.fit.time", clock)
    monkeypatch.setattr("dsd_trt.train.fewshot.fit.save_state", save)
    for report in (die, lambda *_: None):
        with suppress(KillError):
            resumed = fit_adapter(
                checkpoint,
                examples,
                settings,
                validation=examples,
                state_path=tmp_path / STATE_NAME,
                report=report,
            )
    assert saved == [3, 8]
    assert resumed.losses == whole.losses
    assert resumed.validations == whole.validations
    for name, value in whole.adapter.prompt_state.items():
        assert torch.equal(resumed.adapter.prompt_state[name], value), name


def test_a_training_that_diverges_says_so(checkpoint: Checkpoint, examples: Examples) -> None:
    settings = replace(SETTINGS, learning_rate=1e30)
    advice = r"diverged: the loss of step \d+ of \d+ is (nan|inf)\. .* --learning-rate than 1e\+30$"
    with pytest.raises(DsdError, match=advice):
        fit_adapter(checkpoint, examples, settings)


def test_saving_takes_a_twentieth_of_the_time_at_most(
    checkpoint: Checkpoint, examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving takes 5 seconds, a step 9: after the first save, 100 seconds pass."""
    settings = replace(SETTINGS, steps=20, validate_every=100)
    clock = Clock()
    saved: list[int] = []

    def save(path: Path, state: dict[str, Any]) -> None:
        saved.append(len(state["losses"]))
        clock.now += 5.0

    def pass_time(step: int, loss: float, validation: Validation | None) -> None:
        clock.now += 9.0

    monkeypatch.setattr("dsd_trt.train.fewshot.fit.time", clock)
    monkeypatch.setattr("dsd_trt.train.fewshot.fit.save_state", save)
    fit_adapter(checkpoint, examples, settings, state_path=tmp_path / STATE_NAME, report=pass_time)
    assert saved == [3, 3 + math.ceil(100 / 9), 20]


def test_training_stops_when_nothing_gets_better_and_keeps_the_best(
    checkpoint: Checkpoint, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of eight answers, chance loses five in 1 of 32 trainings, and six in 1 of 64: the former is
    # within two standard errors (1 of 44), the latter is not.
    right = (4, 2, 8, 3, 2, 1, 2)
    script = [
        ((True,) * count + (False,) * (8 - count), 0.9 - 0.1 * step)
        for step, count in enumerate(right)
    ]
    learned: list[dict[str, Tensor]] = []

    def scripted(model: FewShotModel, examples: Examples, step: int) -> Validation:
        learned.append(model.learned())
        return Validation(step, *script[step])

    monkeypatch.setattr("dsd_trt.train.fewshot.fit.validate", scripted)
    settings = replace(SETTINGS, validate_every=1, patience=3)
    fitted = fit_adapter(checkpoint, examples, settings, validation=examples)
    assert [(v.answers, v.loss) for v in fitted.validations] == script
    assert len(fitted.losses) == 6 < settings.steps
    assert fitted.best == fitted.validations[3]
    for name, value in fitted.adapter.prompt_state.items():
        assert torch.equal(value, learned[3][f"scoring.prompts.{name}"]), name
    assert any(
        not torch.equal(value, learned[5][f"scoring.prompts.{name}"])
        for name, value in fitted.adapter.prompt_state.items()
    )


def test_validation_answers_with_the_score_that_is_served(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    model = build_model(checkpoint, examples, SETTINGS)
    found = validate(model, examples, 7)
    scoring = build_scoring_unet(checkpoint)
    f = torch.tensor([_score_alone(scoring, examples, i, "attention", 1.0) for i in range(8)])
    assert found.step == 7
    assert found.accuracy == np.mean(examples.right_answers(f))
    expected = _entropy(f, examples.labels, math.exp(3.0), -3.0)
    assert found.loss == pytest.approx(expected, rel=1e-4)


# Head weights and the logistic


def test_head_weights_start_as_given_and_always_sum_to_one() -> None:
    weights = LearnedHeadWeights(torch.tensor([0.5, 0.25, 0.25, 0.0]), learned=True)
    assert torch.allclose(weights(), torch.tensor([0.5, 0.25, 0.25, 0.0]), atol=1e-5)
    with torch.no_grad():
        weights.logits.add_(torch.arange(4.0))
    assert weights().sum().item() == pytest.approx(1)
    assert bool((weights() > 0).all())
    assert not LearnedHeadWeights(torch.ones(3) / 3, learned=False).logits.requires_grad


@pytest.mark.parametrize("score", ["attention", "attention+denoising", "denoising"])
def test_match_probability_never_turns_the_ranking_round(score: ScoreKind) -> None:
    match = MatchProbability(score)
    with torch.no_grad():
        match.log_a.fill_(-9.0)
    rising = torch.tensor([0.1, 0.2, 0.3])
    d = None if score == "attention" else rising
    assert bool((match(rising, d).diff() > 0).all())


def test_the_logistic_is_that_of_the_sum() -> None:
    match = MatchProbability("attention+denoising")
    with torch.no_grad():
        match.log_a.fill_(math.log(5.0))
        match.log_w.fill_(math.log(0.4))
        match.b.fill_(-1.0)
    logit = match(torch.tensor(0.3), torch.tensor(0.2)).item()
    assert logit == pytest.approx(5 * 0.3 + 2 * 0.2 - 1, rel=1e-6)  # a f + c d + b, c = a w


def test_logistic_fit_finds_the_closed_form_of_two_scores() -> None:
    # Two distinct scores: with classes of equal weight, each predicts its own share of matches, of
    # which Platt counts (n + 1) / (n + 2) as one, and 1 / (m + 2) of a mismatch.
    s = torch.tensor([0.25] * 60 + [0.75] * 40)
    labels = torch.tensor([1.0] * 8 + [0.0] * 52 + [1.0] * 32 + [0.0] * 8)
    a, b = fit_match_probability(s, labels)
    yes, no = 41 / 42, 1 / 62
    # Of 40 matches a fifth scores low; of 60 mismatches 52 do.
    for value, matches, mismatches in ((0.25, 8 / 40, 52 / 60), (0.75, 32 / 40, 8 / 60)):
        share = (yes * matches + no * mismatches) / (matches + mismatches)
        assert a * value + b == pytest.approx(math.log(share / (1 - share)), abs=1e-5)


def test_logistic_fit_of_few_pairs_gives_no_probability_near_0_or_1() -> None:
    s = torch.tensor([0.1, 0.11, 0.4, 0.41])
    a, b = fit_match_probability(s, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    p = torch.sigmoid(a * s + b)  # of two each, Platt's targets are a quarter and three
    assert torch.allclose(p, torch.tensor([0.25, 0.25, 0.75, 0.75]), atol=0.02)


def test_logistic_fit_tells_nothing_where_all_scores_are_the_same() -> None:
    assert fit_match_probability(torch.full((4,), 0.3), torch.tensor([0.0, 1, 0, 0])) == (0, 0)
