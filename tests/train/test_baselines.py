"""The CLIP baselines: CLIP's own score, what each of them learns, and what it leaves alone."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from dsd_trt.errors import DsdError, InputError, ModelError
from dsd_trt.train.baselines.clip import Clip, load_clip
from dsd_trt.train.baselines.fit import METHODS, build_matcher, fit, train_baseline, validate
from dsd_trt.train.baselines.matcher import (
    Matcher,
    by_matcher,
    encode_with_clip,
    pair_up,
    score_all,
)
from dsd_trt.train.baselines.prompts import PromptLearning
from dsd_trt.train.commands.baseline import baseline
from dsd_trt.train.evaluation.answers import grade
from dsd_trt.train.fewshot.batch import sample_batch
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.model import Validation
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.left_out import LeftOut
from dsd_trt.train.question import Question
from dsd_trt.train.scoring.choices import Loss
from dsd_trt.train.shapes.tokenizer import build_tokenizer

SIDE = 32
TEXTS = ["a red circle", "a blue square", "a green star in front of a red square", "a white ring"]
COLOURS = [(220, 20, 20), (20, 20, 220), (20, 200, 20), (240, 240, 240)]
LEARNED = {
    "zero-shot": set(),
    "fine-tuning": {
        "visual_projection.weight",
        "text_projection.weight",
        "match.log_a",
        "match.b",
    },
    "prompt-learning": {
        "context",
        "meta.0.weight",
        "meta.0.bias",
        "meta.2.weight",
        "meta.2.bias",
        "match.b",
    },
}
TRAINED = ["fine-tuning", "prompt-learning"]
SETTINGS = FewShotSettings(steps=80, questions=4, negatives=1, hard=1.0, learning_rate=2e-2)


def write_clip(folder: Path) -> Path:
    """A CLIP with random weights: 32 x 32 pixels, towers of different widths."""
    tokenizer = build_tokenizer(folder)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        image_size=SIDE,
        patch_size=8,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=64,
    )
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    )
    for parameter in model.parameters():
        if parameter.dim() == 1:  # all ones and zeros, under which a lost one would not be seen
            parameter.data += 0.1 * torch.randn(parameter.shape)
    # Texts and pictures must differ by more than rounding.
    model.text_model.embeddings.token_embedding.weight.data *= 20
    model.vision_model.embeddings.patch_embedding.weight.data *= 20
    for layer in model.text_model.encoder.layers:
        layer.self_attn.q_proj.weight.data *= 4
        layer.self_attn.v_proj.weight.data *= 4
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(folder)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Four pictures, each with its own text and two others'."""
    pictures = [np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in COLOURS]
    return [
        Question(
            "text",
            tuple((pictures[i], TEXTS[(i + k) % 4]) for k in (1, 0, 2)),
            1,
            f"picture {i}",
        )
        for i in range(4)
    ]


# CLIP as it is


@torch.no_grad()
def test_scores_are_those_of_transformers(clip: Clip, questions: list[Question]) -> None:
    pictures = np.stack([np.asarray(question.candidates[0][0]) for question in questions])
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), [0.26862954, 0.26130258, 0.27577711]
    pixels = torch.from_numpy(((pictures / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    tokens = clip.tokenizer(TEXTS, padding="max_length", max_length=77, return_tensors="pt")
    expected = clip.model(**tokens, pixel_values=pixels).logits_per_image
    matcher = Matcher(clip)
    scores = torch.tensor(by_matcher(matcher)(questions))
    assert scores.std() > 1e-3
    for i in range(4):
        others = [(i + k) % 4 for k in (1, 0, 2)]
        assert torch.allclose(matcher.match(scores[i], None), expected[i, others], atol=1e-4)


def test_pictures_are_stretched_and_normalised_as_the_folder_says(
    folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    told = {"image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 0.25, 1.0]}
    (other / "preprocessor_config.json").write_text(json.dumps(told), encoding="utf-8")
    pixels = load_clip(other).normalise(torch.full((1, 2, 2, 3), 51, dtype=torch.uint8))
    assert pixels.shape == (1, 3, 2, 2)
    assert pixels[0, :, 1, 1].tolist() == pytest.approx([-0.6, -0.2, 0.2])
    assert load_clip(other).resolution == SIDE


def _change(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    if what == "type":
        (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    elif what == "lost weight":
        tensors = load_file(weights)
        del tensors["visual_projection.weight"]
        save_file(tensors, weights, {"format": "pt"})
    elif what == "NaN":
        save_file({**load_file(weights), "logit_scale": torch.tensor(torch.nan)}, weights)
    elif what == "token":
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<cat>"])
        tokenizer.save_pretrained(folder)
    elif what == "torn weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif what == "torn config":
        (folder / "config.json").write_text("{", encoding="utf-8")
    else:
        (folder / what).unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("config.json", "is no CLIP in transformers' format: it has no config.json"),
        ("type", "is no CLIP: its config.json says model_type 'bert'"),
        ("NaN", "logit_scale of CLIP has NaN or infinity in 1 of 1 places"),
        ("token", "the token '<cat>' has the id "),
        ("lost weight", "CLIP lacks visual_projection.weight"),
        ("torn weights", "model.safetensors: "),
        ("torn config", "config.json: "),
        ("model.safetensors", "holds no model.safetensors"),
        ("vocab.json", "holds no tokenizer: it has no vocab.json"),
        ("merges.txt", "holds no tokenizer: it has no merges.txt"),
    ],
)
def test_a_folder_that_is_no_clip_is_refused(
    folder: Path, tmp_path: Path, what: str, message: str
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    _change(other, what)
    with pytest.raises(ModelError) as caught:
        load_clip(other)
    assert message in str(caught.value)
    assert str(other) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"text_config": {"eos_token_id": 5}}, "eos_token_id is 5, expected the"),
        ("tokenizer_config.json", {"padding_side": "left"}, "padding_side is 'left'"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side is 'left'"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize is False"),
        ("preprocessor_config.json", {"image_mean": [122, 116, 104]}, "image_mean is [122, 116,"),
        ("preprocessor_config.json", {"image_mean": "abc"}, "image_mean is 'abc', expected are"),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5]}, "image_std is [0.5, 0.5], expe"),
        ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "image_std is [0, 0, 0], expected"),
    ],
)
def test_what_it_says_of_itself_is_believed_or_refused(
    folder: Path, tmp_path: Path, file: str, fields: dict[str, Any], message: str
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    path = other / file
    plain = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for name, value in fields.items():
        plain[name] = {**plain[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(plain), "utf-8")
    with pytest.raises(
        ModelError, match=f"cannot read the CLIP in {other}: .*{re.escape(message)}"
    ):
        load_clip(other)


def test_an_end_of_texts_that_is_not_said_is_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    plain = json.loads((other / "config.json").read_text("utf-8"))
    del plain["text_config"]["eos_token_id"]  # transformers: 49407, which is no token of this one
    (other / "config.json").write_text(json.dumps(plain), "utf-8")
    with pytest.raises(ModelError, match="eos_token_id is 49407, expected the tokenizer's"):
        load_clip(other)


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="no CLIP folder 'nowhere'"):
        load_clip("nowhere")


# Every method


def _disturbed(clip: Clip, method: str) -> Matcher:
    """A baseline whose learned parameters are neither as they start nor zero."""
    matcher = build_matcher(clip, method)
    with torch.no_grad():
        for parameter in matcher.learned().values():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return matcher


@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_the_batch(
    clip: Clip, questions: list[Question], method: str
) -> None:
    score = by_matcher(_disturbed(clip, method))
    together = score(questions)
    alone = [score([question])[0] for question in reversed(questions)][::-1]
    assert np.ptp(together) > 1e-3
    assert np.abs(np.subtract(together, alone)).max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_cannot_be_decoded_costs_its_own_question_alone(
    clip: Clip, questions: list[Question], method: str, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG")
    score = by_matcher(_disturbed(clip, method))
    picture, text = questions[0].candidates[0]
    spoilt, left_out = Question("k", ((torn, text), (picture, text)), 1, "s"), LeftOut()
    scores = score([questions[0], spoilt, questions[1]], left_out.add)
    assert np.isnan(scores[1]).all()
    assert np.abs(np.subtract(scores[::2], score(questions[:2]))).max() < 1e-6
    (failure,) = left_out.failures
    assert (left_out.questions, failure.image) == (1, str(torn))
    assert np.isnan(score([spoilt])[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_tie_is_a_wrong_answer(clip: Clip, questions: list[Question], method: str) -> None:
    matcher = build_matcher(clip, method)
    blind = copy.deepcopy(matcher.visual_projection)
    nn.init.zeros_(blind.weight)
    matcher.visual_projection = blind
    scores = by_matcher(matcher)(questions)
    assert [grade(*pair).rank for pair in zip(questions, scores, strict=True)] == [3] * 4
    assert validate(matcher, encode_with_clip(matcher, questions), 1).accuracy == 0


def test_what_cannot_be_learned_from_is_refused(clip: Clip, tmp_path: Path) -> None:
    matcher, picture = Matcher(clip), np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="no questions"):
        encode_with_clip(matcher, [])
    with pytest.raises(InputError, match=r"photo 7: .*without a negative pair"):
        encode_with_clip(matcher, [Question("k", ((picture, "a"),), 0, "photo 7")])
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    torn = Question("k", ((tmp_path / "torn.png", "a"), (picture, "a")), 0, "s")
    with pytest.raises(InputError, match=r"torn\.png"):
        encode_with_clip(matcher, [torn])


# Prompts


def _pair(clip: Clip, questions: list[Question], text: str) -> tuple[Tensor, list[Question]]:
    """A picture's state, and a question of the picture and a text."""
    picture = questions[0].candidates[0][0]
    pixels = torch.from_numpy(np.asarray(picture))[None]
    return Matcher(clip).image_states(pixels), [Question("k", ((picture, text),), 0, "s")]


@pytest.mark.parametrize(("context", "before"), [("", ""), ("a photo of", "a photo of ")])
def test_prompts_start_as_clip_itself(
    clip: Clip, questions: list[Question], context: str, before: str
) -> None:
    prompts = by_matcher(PromptLearning(clip, context))(questions)
    said = [
        replace(q, candidates=tuple((image, before + text) for image, text in q.candidates))
        for q in questions
    ]
    assert np.allclose(prompts, by_matcher(Matcher(clip))(said), atol=1e-6, rtol=0)


@torch.no_grad()
def test_prompts_are_context_plus_what_the_meta_network_makes_of_the_image(
    clip: Clip, questions: list[Question]
) -> None:
    matcher = _disturbed(clip, "prompt-learning")
    assert isinstance(matcher, PromptLearning)
    state, question = _pair(clip, questions, TEXTS[2])
    x = F.normalize(clip.model.visual_projection(state)[0], dim=0)
    first, second = matcher.meta[0], matcher.meta[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert first.out_features == 4  # 64 / 16
    shift = second.weight @ (first.weight @ x + first.bias).relu() + second.bias
    # The same vectors as the embeddings of three new tokens, through transformers' own forward.
    model = copy.deepcopy(clip.model)
    embedding = model.text_model.embeddings.token_embedding
    known = len(embedding.weight)
    embedding.weight = nn.Parameter(torch.cat([embedding.weight, matcher.context + shift]))
    bos, *words = clip.tokenizer(TEXTS[2]).input_ids
    ids = torch.tensor([[bos, known, known + 1, known + 2, *words]])
    y = model.text_projection(model.text_model(input_ids=ids).pooler_output)[0]
    expected = float(x @ y / y.norm())
    assert by_matcher(matcher)(question)[0] == pytest.approx([expected], abs=1e-6)
    assert abs(expected - by_matcher(Matcher(clip))(question)[0][0]) > 1e-3


def test_a_long_text_loses_its_last_words_and_not_its_end(clip: Clip) -> None:
    matcher = PromptLearning(clip)
    texts = ["red " * 200, "red " * 72, "red"]
    ids = matcher.text_states(texts)
    assert ids.shape == (3, 77 - 3)
    assert torch.equal(ids[0], ids[1])
    assert clip.ends(ids).tolist() == [73, 73, 2]
    assert torch.isfinite(matcher(torch.randn(3, 48), ids)).all()


# Training


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_declared_is_learned(
    clip: Clip, questions: list[Question], method: str
) -> None:
    original = {name: value.clone() for name, value in clip.model.state_dict().items()}
    matcher = build_matcher(clip, method)
    assert matcher.learned().keys() == LEARNED[method]
    if method in TRAINED:
        before = {name: value.detach().clone() for name, value in matcher.named_parameters()}
        fit(matcher, encode_with_clip(matcher, questions), replace(SETTINGS, steps=3))
        changed = {n for n, p in matcher.named_parameters() if not torch.equal(p, before[n])}
        # The balance moves b before the first step; every other change is a gradient's.
        assert changed == LEARNED[method]
        assert {n for n, p in matcher.named_parameters() if p.grad is not None} == changed
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, original[name]), name


@pytest.mark.parametrize("loss", ["bce", "softmax"])
@pytest.mark.parametrize("method", TRAINED)
def test_the_first_step_is_adams_against_the_slope_of_the_loss(
    clip: Clip, questions: list[Question], method: str, loss: Loss
) -> None:
    """AdamW's first step is the learning rate against each slope's sign, after weight decay.

    Slopes are central differences of the loss, of a few parameters one by one.
    """
    settings = replace(SETTINGS, steps=1, loss=loss, learning_rate=1e-3)
    matcher = build_matcher(clip, method)
    examples = encode_with_clip(matcher, questions)
    batch = sample_batch(examples, settings, np.random.default_rng([0, 0, 0, 0]))
    fit(matcher, examples, replace(settings, steps=0))  # puts the logistic's middle in place
    still = copy.deepcopy(matcher).double()
    precise = replace(examples, latents=examples.latents.double())
    if method == "fine-tuning":  # else they are token ids
        precise = replace(precise, text_states=precise.text_states.double())

    @torch.no_grad()
    def loss_of_batch() -> float:
        f = pair_up(still, precise, batch.images.flatten(), batch.texts.flatten())
        logits = still.match(f, None).view(batch.images.shape)
        if loss == "softmax":
            return float((logits.logsumexp(1) - logits[:, 0]).mean())
        signs = torch.ones_like(logits)
        signs[:, 0] = -1
        return float(torch.log1p((signs * logits).exp()).mean())

    fit(matcher, examples, settings)
    compared, rng = 0, np.random.default_rng(5)
    for name, parameter in still.learned().items():
        flat, after = parameter.data.view(-1), matcher.learned()[name].detach().double().view(-1)
        for at in rng.choice(len(flat), min(len(flat), 12), replace=False):
            before = float(flat[at])
            flat[at] = before + 1e-4
            above = loss_of_batch()
            flat[at] = before - 1e-4
            slope = (above - loss_of_batch()) / 2e-4
            flat[at] = before
            if abs(slope) > 1e-3:  # or its sign is rounding's
                compared += 1
                expected = before * (1 - 1e-5) - settings.learning_rate * np.sign(slope)
                assert float(after[at]) == pytest.approx(expected, abs=2e-5), name
    assert compared > 10


@pytest.mark.parametrize("method", TRAINED)
def test_a_first_loss_is_that_of_dsds_first_batch_on_balanced_scores(
    clip: Clip, questions: list[Question], method: str
) -> None:
    matcher = build_matcher(clip, method)
    examples = encode_with_clip(matcher, questions)
    f = score_all(matcher, examples)
    a = float(clip.model.logit_scale.exp())
    right = [1, 4, 7, 10]
    wrong = [pair for pair in range(12) if pair not in right]
    b = -a * float(f[right].mean() + f[wrong].mean()) / 2
    batch = sample_batch(examples, SETTINGS, np.random.default_rng([0, 0, 0, 0]))
    table = f.view(4, 3)  # [picture, candidate], whose texts are (i + 1, i, i + 2)
    column = (examples.texts.view(4, 3)[:, None] == torch.arange(4)[:, None]).int().argmax(2)
    logits = a * table[batch.images, column[batch.images, batch.texts]] + b
    history = fit(matcher, examples, replace(SETTINGS, steps=1))
    assert history.losses == pytest.approx([float(batch.loss(logits.flatten(), "bce"))], rel=1e-4)


@pytest.mark.parametrize("method", TRAINED)
def test_a_seed_fixes_what_is_learned(clip: Clip, questions: list[Question], method: str) -> None:
    settings = replace(SETTINGS, steps=4, validate_every=2)
    (one, first), (other, again) = (
        train_baseline(clip, method, questions, settings, 0.25) for _ in range(2)
    )
    assert first == again
    assert [outcome.step for outcome in first.validations] == [0, 2, 4]
    for name, value in one.learned().items():
        assert torch.equal(value, other.learned()[name]), name


@pytest.mark.parametrize("method", TRAINED)
def test_training_stops_when_nothing_gets_better_and_keeps_the_best(
    clip: Clip, questions: list[Question], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = [(2, 0.9), (2, 0.8), (3, 0.9), (3, 0.95), (2, 0.1), (1, 0.1)]
    script = [((True,) * count + (False,) * (4 - count), loss) for count, loss in right]
    learned: list[dict[str, Tensor]] = []

    def scripted(matcher: Matcher, examples: Examples, step: int) -> Validation:
        learned.append({n: value.detach().clone() for n, value in matcher.learned().items()})
        return Validation(step, *script[step])

    monkeypatch.setattr("dsd_trt.train.baselines.fit.validate", scripted)
    matcher = build_matcher(clip, method)
    examples = encode_with_clip(matcher, questions)
    settings = replace(SETTINGS, validate_every=1, patience=3)
    history = fit(matcher, examples, settings, validation=examples)
    assert [(v.answers, v.loss) for v in history.validations] == script
    assert len(history.losses) == 5 < settings.steps
    assert history.best == history.validations[2]
    for name, value in matcher.learned().items():
        assert torch.equal(value, learned[2][name]), name
        assert not torch.equal(value, learned[5][name]), name


# The command


def test_the_command_learns_and_writes_its_table(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(folder), "--data", "shapes-comvg", "--examples", "8", "--limit", "6"]
    arguments += ["--steps", "3", "--method", "fine-tuning", "--out", str(out)]
    done = CliRunner().invoke(baseline, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[2].startswith("| subject | 2 | 50.0 |")
    assert (out / "table.md").read_text("utf-8") == done.stdout
    saved = json.loads((out / "figures.json").read_text("utf-8"))
    assert saved["training"]["examples"] == 8
    assert saved["training"]["steps_done"] == 3
    assert saved["training"]["best"]["step"] in (0, 3)
    with Image.open(out / "figures.png") as picture:
        assert picture.size[0] > 300
    again = CliRunner().invoke(baseline, [*arguments, "-f", "json"])
    assert json.loads(again.stdout) == saved


def test_the_command_measures_without_training(folder: Path) -> None:
    arguments = [str(folder), "--data", "shapes-refcocog", "--limit", "3", "-f", "json"]
    done = CliRunner().invoke(baseline, [*arguments, "--method", "zero-shot"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["training"] == {}
    assert [row["chance"] for row in shown["figures"]] == pytest.approx([10])


@pytest.mark.parametrize(
    ("clip", "data", "message"),
    [("nowhere", "shapes-vqa", "no CLIP folder 'nowhere'"), (None, "nothing", "no data set")],
)
def test_the_command_says_what_is_wrong(
    folder: Path, clip: str | None, data: str, message: str
) -> None:
    arguments = [clip or str(folder), "--data", data, "--method", "fine-tuning"]
    done = CliRunner().invoke(baseline, arguments)
    assert isinstance(done.exception, DsdError)
    assert message in str(done.exception)
