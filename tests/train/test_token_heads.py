"""Token heads: against a loop over their formula, on disk, exported, and learned."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsd_trt import Scorer
from dsd_trt.bundle.lists import Lists, Measured
from dsd_trt.errors import InputError, ModelError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.lists import list_order
from dsd_trt.train.build import build_scoring_unet, build_token_heads
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts, read_checkpoint
from dsd_trt.train.fewshot.encodings import encode_candidates
from dsd_trt.train.fewshot.fit import DivergedError
from dsd_trt.train.imitation import enough
from dsd_trt.train.imitation.fit import Lessons, fit_token_heads, gather
from dsd_trt.train.imitation.imitation import imitate, plain_heads
from dsd_trt.train.imitation.measure import measure, score_blocks
from dsd_trt.train.imitation.two_modes import Matched, TwoModes
from dsd_trt.train.question import Question
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.choices import DEFAULT_LEVELS
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.token_heads import TokenHeads

pytest_plugins = ("exported",)

TEXTS = ["a red circle", "two blue squares left of a star", "green", "a star"]
LISTS = Lists(1, 10, 0.01, {"1": Measured(20, (-0.2, -0.1))}, {"1": Measured(10, (-0.3,))}, 2)
HEADS, WIDTH = 12, 32  # of the tiny checkpoint, all layers


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return read_checkpoint(checkpoint_folder)


def drawn_heads(seed: int = 0) -> TokenHeads:
    generator = torch.Generator().manual_seed(seed)
    heads = TokenHeads(HEADS, WIDTH).requires_grad_(False)
    for name, parameter in heads.named_parameters():
        spread = 0.3 if name == "gate" else 0.1
        parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return heads


def questions(count: int, seed: int = 0) -> list[Question]:
    """Drawn images, each with three texts."""
    rng = np.random.default_rng(seed)
    words = ("red", "blue", "green", "white"), ("circle", "star", "square", "ring", "cross")
    made = []
    for number in range(count):
        image = rng.integers(0, 256, (32, 32, 3), np.uint8)
        texts: dict[str, None] = {}
        while len(texts) < 3:
            first, second = (" ".join(rng.choice(it) for it in words) for _ in range(2))
            texts[f"a {first} left of a {second}"] = None
        made.append(Question("", tuple((image, it) for it in texts), 0, str(number)))
    return made


# The formula


def by_loop(
    scorer: MatrixScorer, heads: TokenHeads, latents: Any, level: int, texts: Any, masks: Any
) -> Any:
    """(images, texts), one token and head at a time, from the maps themselves."""
    scoring = scorer.scoring
    scores = np.zeros((len(latents), len(texts)))
    at = torch.tensor([level])
    for i, j in np.ndindex(*scores.shape):
        queries = scorer.queries(latents[i : i + 1], at)
        states, counted = texts[j], masks[j].bool().tolist()
        strength = [math.exp(float(states[t] @ heads.gate)) for t in range(77)]
        total = sum(it for it, counts in zip(strength, counted, strict=True) if counts)
        first = 0
        for place, query in enumerate(queries):
            name = scoring.layer_names[scoring.score_layers[place]]
            keys = states @ scoring.unet.get_submodule(name).attn2.to_k.weight.T  # (77, inner)
            width = query.shape[3]
            for head in range(query.shape[1]):
                part = keys[:, head * width : (head + 1) * width]
                attention = (query[0, head] @ part.T).softmax(dim=1)  # (n, 77)
                pooled = (scoring.lam * attention).exp().mean(dim=0).log() / scoring.lam
                for t in range(77):
                    if counted[t]:
                        weight = heads.base[first + head] + heads.of_token[first + head] @ states[t]
                        scores[i, j] += float(strength[t] / total * weight * pooled[t])
            first += query.shape[1]
    return scores + float(heads.offset)


@torch.no_grad()
def test_scores_are_those_of_the_formula(checkpoint: Checkpoint) -> None:
    heads = drawn_heads()
    states, masks = encode_texts(checkpoint, TEXTS)
    scoring = build_scoring_unet(checkpoint, None, levels=(0.2, 0.8))
    scorer = MatrixScorer(scoring, encode_texts(checkpoint, [""])[0], token_heads=heads)
    pictures = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), np.uint8)
    latents = checkpoint.image_encoder(torch.from_numpy(pictures))
    expected = by_loop(scorer, heads, latents, 1, states, masks)
    assert expected.std() > 1e-3  # or agreement would mean nothing
    level = torch.ones(2, dtype=torch.long)
    assert np.abs(scorer(latents, level, states, masks).numpy() - expected).max() < 1e-5
    each = scorer.score(latents, level, states[None], masks[None]).numpy()
    assert np.abs(each - expected).max() < 1e-5
    narrow = int(masks.amax(dim=0).nonzero().max()) + 1  # as wide as the longest text
    assert np.abs(scorer(latents, level, states, masks[:, :narrow]).numpy() - expected).max() < 1e-5


@torch.no_grad()
def test_equal_heads_are_matrix_mode_without_them(checkpoint: Checkpoint) -> None:
    encodings = encode_candidates(checkpoint, questions(2))
    modes = TwoModes(checkpoint, None, encodings)
    level = torch.tensor([modes.list_level])
    texts = np.arange(len(encodings.texts))
    plain = modes.matrix(encodings.latents[:1], level, encodings.text_states, encodings.token_masks)
    found = modes.estimates(plain_heads(modes), modes.match(0, texts), texts)
    assert np.abs(found - plain.numpy()).max() < 1e-3  # pooled attention is kept in FP16


def test_a_text_without_counted_tokens_has_the_offset_alone() -> None:
    weights = drawn_heads().weights(torch.randn(3, 77, WIDTH), torch.zeros(3, 77))
    assert not weights.any()


# On disk


def adapter(heads: TokenHeads, lists: Lists | None = LISTS) -> Adapter:
    plain = Adapter.unchanged("attention", DEFAULT_LEVELS)
    return replace(plain, token_heads=heads.state_dict(), lists=lists)


def test_an_adapter_keeps_them(tmp_path: Path, checkpoint: Checkpoint) -> None:
    heads = drawn_heads()
    adapter(heads).save(tmp_path)
    read = Adapter.load(tmp_path)
    assert read.lists == LISTS
    scoring = build_scoring_unet(checkpoint, read)
    found = build_token_heads(scoring, read)
    assert found is not None
    assert all(torch.equal(found.state_dict()[name], it) for name, it in heads.state_dict().items())
    some = build_scoring_unet(checkpoint, read, score_layers=[0, 1])
    assert build_token_heads(some, read) is None  # they are of all layers


@pytest.mark.parametrize("name", ["base", "of_token", "gate", "offset"])
def test_parts_that_are_missing_or_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    whole = adapter(drawn_heads())
    rest = {key: value for key, value in whole.token_heads.items() if key != name}
    replace(whole, token_heads=rest).save(tmp_path)
    with pytest.raises(ModelError, match="token heads"):
        Adapter.load(tmp_path)
    replace(whole, token_heads=rest | {name: torch.zeros(3, 5)}).save(tmp_path)
    with pytest.raises(ModelError, match="token_heads"):
        Adapter.load(tmp_path)


def test_lists_without_token_heads_are_refused(tmp_path: Path) -> None:
    replace(adapter(drawn_heads()), token_heads={}).save(tmp_path)
    with pytest.raises(ModelError, match="lists"):
        Adapter.load(tmp_path)


def test_those_of_another_model_are_refused(checkpoint: Checkpoint) -> None:
    other = adapter(TokenHeads(HEADS, WIDTH + 1).requires_grad_(False))
    with pytest.raises(ModelError, match="token heads are not of 12 heads"):
        build_token_heads(build_scoring_unet(checkpoint, other), other)


# Exported


@pytest.fixture(scope="module")
def with_lists(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    adapter(drawn_heads()).save(folder / "adapter")
    settings = ExportSettings(str(checkpoint_folder), folder / "adapter", matrix=True)
    export_bundle(settings, folder / "bundle")
    return folder


@pytest.mark.slow
@torch.no_grad()
def test_a_bundle_estimates_with_them(with_lists: Path, checkpoint: Checkpoint) -> None:
    plain = json.loads((with_lists / "bundle" / "bundle.json").read_text("utf-8"))
    assert plain["matrix"]["lists"]["texts"]["1"] == {"count": 20, "needs": [-0.2, -0.1]}
    pictures = np.random.default_rng(4).integers(0, 256, (2, 32, 32, 3), np.uint8)
    scorer = MatrixScorer(
        build_scoring_unet(checkpoint, None),
        encode_texts(checkpoint, [""])[0],
        token_heads=drawn_heads(),
    )
    latents = checkpoint.image_encoder(torch.from_numpy(pictures))
    states, masks = encode_texts(checkpoint, TEXTS)
    each = [scorer(latents, torch.full((2,), level), states, masks) for level in range(4)]
    expected = torch.stack(each).mean(dim=0).numpy()
    for engine in ("onnxruntime", "openvino"):
        with Scorer.load(with_lists / "bundle", engine=engine, mode="matrix") as opened:
            for count in (1, 2):
                found = opened.score(list(pictures[:count]), TEXTS).scores
                assert np.abs(found - expected[:count]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "other", [{"levels": (0.3, 0.6)}, {"resize": "bicubic-stretch-through-224"}]
)
def test_lists_of_other_settings_are_left_out(
    other: dict[str, Any], with_lists: Path, checkpoint_folder: Path, tmp_path: Path, caplog: Any
) -> None:
    settings = ExportSettings(str(checkpoint_folder), with_lists / "adapter", matrix=True, **other)
    export_bundle(settings, tmp_path / "bundle")
    plain = json.loads((tmp_path / "bundle" / "bundle.json").read_text("utf-8"))
    assert "lists" not in plain["matrix"]
    assert "measured with other settings" in caplog.text


@pytest.mark.slow
def test_lists_of_another_rule_are_left_out(
    with_lists: Path, checkpoint_folder: Path, tmp_path: Path, caplog: Any
) -> None:
    adapter = Adapter.load(with_lists / "adapter")
    assert adapter.lists is not None
    replace(adapter, lists=replace(adapter.lists, rule=None)).save(tmp_path / "adapter")
    settings = ExportSettings(str(checkpoint_folder), tmp_path / "adapter", matrix=True)
    export_bundle(settings, tmp_path / "bundle")
    plain = json.loads((tmp_path / "bundle" / "bundle.json").read_text("utf-8"))
    assert "lists" not in plain["matrix"]
    assert "Measure them again: dsd-trt imitate" in caplog.text


# Learned


@torch.no_grad()
def modes_of(checkpoint: Checkpoint, count: int) -> tuple[TwoModes, Any]:
    encodings = encode_candidates(checkpoint, questions(count))
    return TwoModes(checkpoint, None, encodings), encodings


def test_what_a_teacher_prefers_is_learned(checkpoint: Checkpoint) -> None:
    """A teacher that is itself made of token heads is found again, on images not learned from."""
    modes, encodings = modes_of(checkpoint, 40)
    texts = np.arange(len(encodings.texts))
    teacher = drawn_heads(1)
    images = np.arange(40)
    rng = np.random.default_rng(0)
    lessons = gather(modes, images[:30], texts, texts[:30, None].tolist(), rng)
    every = Matched.stack([modes.match(image, texts) for image in range(40)])
    taught = modes.estimates(teacher, every[:30], texts)
    scores = torch.from_numpy(np.take_along_axis(taught, lessons.texts, axis=1))
    heads = fit_token_heads(modes, Lessons(lessons.matched, lessons.texts, scores))
    wanted = modes.estimates(teacher, every[30:], texts)

    def agreement(of: TokenHeads) -> float:
        found = modes.estimates(of, every[30:], texts)
        pairs = zip(found, wanted, strict=True)
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))

    assert agreement(heads) > 0.9
    assert agreement(heads) > agreement(plain_heads(modes)) + 0.2
    missed = modes.estimates(heads, every[:30], texts) - taught
    assert abs(missed.mean()) < 0.2 * taught.std()  # in the teacher's units


def test_scores_that_are_no_numbers_end_it(checkpoint: Checkpoint) -> None:
    modes, encodings = modes_of(checkpoint, 4)
    texts = np.arange(len(encodings.texts))
    lessons = gather(modes, np.arange(4), texts, [[0]] * 4, np.random.default_rng(0))
    lessons.scores[2, 1] = np.nan
    with pytest.raises(DivergedError, match="not finite"):
        fit_token_heads(modes, lessons)


def test_ranks_are_those_of_all_scores(checkpoint: Checkpoint) -> None:
    """The search for the best, which leaves most scores out, finds what all scores say."""
    modes, _ = modes_of(checkpoint, 12)
    images, texts = np.arange(12), np.arange(12)
    blocks = score_blocks(modes, images, texts)
    heads = drawn_heads(2)
    _, ranks = measure(modes, heads, blocks)
    every = np.stack(
        [
            modes.score(np.repeat(images, 12), np.tile(texts, 12), level).reshape(12, 12)
            for level in range(modes.levels)
        ]
    ).mean(axis=0)
    matched = Matched.stack([modes.match(image, texts) for image in range(12)])
    estimates = modes.estimates(heads, matched, texts)
    for found, full, of in (
        (ranks.texts, every, estimates),
        (ranks.images, every.T, estimates.T),
    ):
        wanted = [
            int(np.flatnonzero(list_order(line) == row.argmax())[0]) + 1
            for row, line in zip(full, of, strict=True)
        ]
        assert found.tolist() == wanted


def test_lists_with_a_score_that_is_no_number_are_left_out(checkpoint: Checkpoint) -> None:
    modes, _ = modes_of(checkpoint, 12)
    (block,) = score_blocks(modes, np.arange(12), np.arange(12))
    heads = drawn_heads(2)
    every, _ = measure(modes, heads, [block])
    block.first[2, 5] = np.nan
    lists, ranks = measure(modes, heads, [block])
    for kind, whole, found in (
        (ranks.texts, every.texts, lists.texts),
        (ranks.images, every.images, lists.images),
    ):
        assert len(kind) == found["1"].count == found["5"].count == 11
        assert set(found["1"].gaps or ()) <= set(whole["1"].gaps or ())
    assert lists.slope == pytest.approx(every.slope, rel=0.3)
    block.first[:, 5] = np.nan
    with pytest.raises(DivergedError, match="no list can be measured"):
        measure(modes, heads, [block])


def test_no_text_is_in_two_blocks(checkpoint: Checkpoint) -> None:
    modes, _ = modes_of(checkpoint, 12)
    (block,) = score_blocks(modes, np.arange(12), np.arange(5))
    assert block.texts.tolist() == [0, 1, 2, 3, 4]
    assert block.first.shape == (5, 5)


def test_imitation_divides_what_it_learns_from_and_measures_on(
    checkpoint: Checkpoint, monkeypatch: Any
) -> None:
    monkeypatch.setattr(enough, "FEWEST", 12)
    made = imitate(checkpoint, None, questions(18), seed=1)
    assert made.learned_from == 12
    assert made.after.candidates == 6
    lists = made.adapter.lists
    assert lists is not None
    assert lists.candidates == 6
    assert (lists.texts["1"].count, lists.images["5"].count) == (6, 6)
    record = made.adapter.training["imitation"]
    assert record["images"] == 12
    kept = made.related.relations is not None
    assert record["relations"] == kept == bool(made.adapter.relations)
    assert (record["loss"], record["loss_without_relations"]) == (
        made.related.loss,
        made.related.without,
    )
    with pytest.raises(InputError, match="11 images that can be used"):
        imitate(checkpoint, None, questions(11))


def test_imitation_measures_on_what_is_named(checkpoint: Checkpoint, monkeypatch: Any) -> None:
    monkeypatch.setattr(enough, "FEWEST", 12)
    of_both = questions(30)
    learned, others = of_both[:14], of_both[10:]  # four are in both
    made = imitate(checkpoint, None, learned, others, seed=1)
    assert made.learned_from == 14
    lists = made.adapter.lists
    assert lists is not None
    assert lists.candidates == lists.texts["1"].count == 16
    with pytest.raises(InputError, match="7 images that can be used"):
        imitate(checkpoint, None, learned, of_both[10:21])
