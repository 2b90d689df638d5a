"""Explanations: maps that pool to the score, heat that sums to it, words that make a difference."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import make_bundle
from numpy.typing import NDArray
from PIL import Image

from dsd_trt import (
    Bundle,
    EngineError,
    ImageError,
    Index,
    InputError,
    Scorer,
    read_bundle,
    update_index,
    write_bundle,
)
from dsd_trt.attention import enlarged, head_weights, pooled, pooled_tokens, shares
from dsd_trt.bundle.folder import with_maps
from dsd_trt.bundle.maps import places_of
from dsd_trt.bundle.method import HeadWeights, Method
from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.explanation import Explanation
from dsd_trt.failure import Failure

ROOT = Path(__file__).parents[2]
STAR = ROOT / "examples" / "images" / "lone-star.png"
TEXTS = ["a large yellow star", "a red circle above a glimmering square", "Star!"]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load(engine="onnxruntime")


@pytest.fixture(scope="module")
def starry(scorer: Scorer) -> Explanation:
    return scorer.explain(STAR, TEXTS[0])


def method(**changes: Any) -> Method:
    return replace(read_bundle(EMBEDDED).manifest.method, **changes)


def some_maps(seed: int = 0) -> NDArray[np.float32]:
    """Random maps: a softmax over text tokens, (2, 3, 16, 9)."""
    logits = np.random.default_rng(seed).normal(size=(2, 3, 16, 9)) * 4
    maps = np.exp(logits) / np.exp(logits).sum(axis=3, keepdims=True)
    return maps.astype(np.float32)


@pytest.mark.parametrize("lam", [0.5, 20.0, 5000.0])
def test_pooling_is_that_of_the_equation(lam: float) -> None:
    """In slow loops, and in floats of Python, which do not overflow below 709."""
    maps, got = some_maps(), pooled(some_maps(), method(lam=lam))
    for place in np.ndindex(2, 3, 9):
        values = [float(it) for it in maps[place[0], place[1], :, place[2]]]
        top = max(values)
        expected = top + math.log(sum(math.exp(lam * (it - top)) for it in values) / 16) / lam
        assert got[place] == pytest.approx(expected, abs=1e-12)
    at_most = pooled(maps, method(pooling="max"))
    np.testing.assert_array_equal(at_most, maps.max(axis=2))


@pytest.mark.parametrize("lam", [0.5, 20.0, 5000.0])
def test_shares_are_what_each_place_adds(lam: float) -> None:
    """Without its places but one, a map's pooled value follows from that place's share alone."""
    maps = some_maps(1)[:1, :1, :, :1]
    of = shares(maps, method(lam=lam))
    np.testing.assert_allclose(of.sum(axis=2), 1)
    assert (of >= 0).all()
    if lam > 100:  # the maximum takes it all
        assert of.ravel().argmax() == maps.ravel().argmax()
        return
    whole = math.expm1(lam * float(pooled(maps, method(lam=lam))[0, 0, 0]))
    for place in range(16):
        alone = np.zeros_like(maps)
        alone[:, :, place] = maps[:, :, place]
        part = math.expm1(lam * float(pooled(alone, method(lam=lam))[0, 0, 0]))
        assert of[0, 0, place, 0] == pytest.approx(part / whole, rel=1e-6)


def test_shares_of_an_empty_map_are_even() -> None:
    np.testing.assert_array_equal(shares(np.zeros((1, 1, 4, 1)), method()), 0.25)
    first = shares(np.full((1, 1, 4, 1), 0.5), method(pooling="max")).ravel()
    np.testing.assert_array_equal(first, [1, 0, 0, 0])


def test_dynamic_head_weights_are_those_of_the_attribution() -> None:
    """Eq. 7, with the derivative of the pooled value by finite differences."""
    maps, mask = (
        [some_maps(2).astype(np.float64), some_maps(3).astype(np.float64)],
        np.zeros((2, 9)),
    )
    mask[:, 1:4] = 1
    given = HeadWeights("dynamic", ((0.1, 0.2, 0.2), (0.1, 0.3, 0.1)))
    dynamic = method(score_layers=(0, 1), head_weights=given)
    got, step = head_weights(maps, dynamic, mask), 1e-5
    for row in range(2):
        expected = []
        for attention, base in zip(maps, given.values, strict=True):
            for head in range(3):
                attribution = []
                for token in range(1, 4):
                    one = attention[row, head, :, token]
                    slope = 0.0
                    for place in range(16):
                        moved = np.repeat(one[None], 2, axis=0)
                        moved[:, place] += [-step, step]
                        low, high = pooled(moved[:, None, :, None], dynamic).ravel()
                        slope += one[place] * (high - low) / (2 * step)
                    attribution.append(slope)
                expected.append(base[head] * np.mean(attribution))
        np.testing.assert_allclose(
            np.concatenate([it[row] for it in got]), expected / np.sum(expected), rtol=1e-6
        )


def test_enlarged_maps_keep_their_mass_in_its_place() -> None:
    heat = np.random.default_rng(0).random((5, 12))  # 3 rows, 4 columns
    large = enlarged(heat, (3, 4), (6, 12))
    np.testing.assert_allclose(large, np.kron(heat.reshape(5, 3, 4), np.ones((1, 2, 3))) / 6)
    odd = enlarged(heat, (3, 4), (4, 5))  # cells overlap
    np.testing.assert_allclose(odd.sum(axis=(1, 2)), heat.sum(axis=1))
    np.testing.assert_allclose(odd[:, 0, 0], heat[:, 0] * 3 / 4 * 4 / 5)


def test_places_of_layers_follow_from_the_latents_halves() -> None:
    assert places_of([4096, 64, 1024], (4, 64, 64)) == [(64, 64), (8, 8), (32, 32)]
    assert places_of([81, 25, 9], (4, 9, 9)) == [(9, 9), (5, 5), (3, 3)]
    assert places_of([96, 24, 6], (4, 8, 12)) == [(8, 12), (4, 6), (2, 3)]
    with pytest.raises(ValueError, match="7 image tokens"):
        places_of([7], (4, 8, 8))


def test_an_explanation_is_of_the_very_score(engine: str) -> None:
    with Scorer.load(engine=engine) as scorer:
        matrix = scorer.score([STAR], TEXTS)
        (row,) = scorer.stream([STAR], TEXTS, tokens=True).images
        assert row.tokens is not None
        for column, it in enumerate(scorer.explain(STAR, TEXTS)):
            assert it.score == pytest.approx(matrix.scores[0, column], abs=1e-5)
            assert it.probability == pytest.approx(matrix.probabilities[0, column], abs=1e-3)
            assert (it.image, it.text) == (str(STAR), TEXTS[column])
            scores = [token.score for word in it.words for token in word.tokens]
            np.testing.assert_allclose(scores, row.tokens[column, list(it.tokens)], atol=1e-5)


def test_heat_sums_to_the_scores(starry: Explanation) -> None:
    for number, word in enumerate(starry.words):
        assert word.heat is not None
        assert word.heat.shape == (8, 8)
        assert word.heat.dtype == np.float32
        assert (word.heat >= 0).all()
        assert word.heat.sum() == pytest.approx(word.score, abs=1e-6)
        np.testing.assert_array_equal(word.heat, starry.heat(number))
    assert starry.heat().sum() == pytest.approx(starry.score, abs=1e-6)


def test_the_choices_make_up_the_whole(starry: Explanation) -> None:
    """Heat of all is the mean over levels, and over heads by their weights."""
    whole = starry.heat(3)
    by_level = np.mean([starry.heat(3, level=it) for it in starry.levels], axis=0)
    np.testing.assert_allclose(by_level, whole, atol=1e-7)
    weights = starry.method.head_weights.values
    by_layer = [
        sum(of_layer) * starry.heat(3, layer=layer)
        for layer, of_layer in zip(starry.method.score_layers, weights, strict=True)
    ]
    np.testing.assert_allclose(np.sum(by_layer, axis=0) / np.sum(weights), whole, atol=1e-7)
    by_head = [w * starry.heat(3, layer=6, head=h) for h, w in enumerate(weights[6])]
    np.testing.assert_allclose(
        np.sum(by_head, axis=0) / sum(weights[6]), starry.heat(3, layer=6), atol=1e-7
    )
    of_tokens = [starry.heat(it) for it in range(len(starry.words))]  # one token each
    np.testing.assert_allclose(np.mean(of_tokens, axis=0), starry.heat(), atol=1e-7)
    one = starry.layers[6].attention[2, 1, :, 3].reshape(8, 8)  # level 0.1, head 1, "star"
    chosen: dict[str, Any] = {"layer": 6, "head": 1, "level": 0.1}
    np.testing.assert_allclose(starry.attention(3, **chosen) * 64, one, atol=1e-6)
    assert starry.heat(3, **chosen).argmax() == one.argmax()


def test_the_heat_of_words_is_of_the_choice(scorer: Scorer, starry: Explanation) -> None:
    chosen = scorer.explain(STAR, TEXTS[0], layer=2, head=0, level=0.05)
    for number, word in enumerate(chosen.words):
        assert word.heat is not None
        expected = starry.heat(number, layer=2, head=0, level=0.05)
        np.testing.assert_allclose(word.heat, expected, atol=1e-6)
    assert chosen.score == pytest.approx(starry.score, abs=1e-6)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layer": 7}, "no scored layer 7; the bundle scores 0, 1, 2"),
        ({"head": 4}, "heads are numbered 0 to 3"),
        ({"head": -1}, "heads are numbered 0 to 3"),
        ({"level": 0.3}, "no noise level 0.3"),
        ({"levels": [0.02], "level": 0.05}, "no noise level 0.05"),
        ({"levels": [0.3]}, "no noise level 0.3"),
        ({"text": ""}, "text is empty"),
        ({"text": []}, "texts is empty"),
        ({"text": 7}, "text must be a string"),
    ],
)
def test_what_there_is_not_is_refused_before_the_work(
    scorer: Scorer, choice: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        scorer.explain("no-such.png", **{"text": "a star", **choice})


def test_images_come_in_every_form(scorer: Scorer, starry: Explanation, tmp_path: Path) -> None:
    update_index(tmp_path / "index", [STAR], engine="onnxruntime")
    with Image.open(STAR) as opened:
        picture = opened.convert("RGB")
    for image in (str(STAR), STAR.read_bytes(), picture, np.array(picture)):
        found = scorer.explain(image, TEXTS[0])
        assert found.score == pytest.approx(starry.score, abs=1e-6)
        assert found.pixels is not None
        assert found.pixels.shape == (64, 64, 3)
    indexed = scorer.explain(Index.open(tmp_path / "index")[0], TEXTS[0])
    assert indexed.score == pytest.approx(starry.score, abs=1e-6)
    assert indexed.pixels is None


def test_texts_are_explained_one_by_one(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps of a text are computed when it is asked for, and nothing else holds them."""
    passes: list[int] = []
    maps = scorer._pipeline.attention_maps

    def counting(*arguments: Any) -> Any:
        passes.append(1)
        return maps(*arguments)

    monkeypatch.setattr(scorer._pipeline, "attention_maps", counting)
    each = scorer.explain_each(STAR, TEXTS)
    levels = len(scorer.manifest.method.noise_levels.fractions)
    held: list[weakref.ref[Any]] = []
    for done in range(len(TEXTS)):
        assert len(passes) == done * levels
        assert all(it() is None for it in held)
        found = next(each)
        assert isinstance(found, Explanation)
        held.append(weakref.ref(found.layers[0]))
        del found
    with pytest.raises(ImageError, match=r"none\.png"):
        scorer.explain_each("none.png", TEXTS)  # at once


def test_a_text_without_states_is_a_failure(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = scorer._jobs.encode_texts

    def failing(texts: Any) -> Any:
        encoded, lost = encode(texts)
        return encoded, [*lost, Failure(None, "no states", TEXTS[1])]

    monkeypatch.setattr(scorer._jobs, "encode_texts", failing)
    found = list(scorer.explain_each(STAR, TEXTS))
    assert [it.text for it in found] == TEXTS
    assert [isinstance(it, Failure) for it in found] == [False, True, False]
    with pytest.raises(EngineError, match="no states"):
        scorer.explain(STAR, TEXTS)


def test_levels_are_those_of_the_score(scorer: Scorer) -> None:
    found = scorer.explain(STAR, TEXTS[0], levels=[0.2, 0.02])
    expected = scorer.score([STAR], [TEXTS[0]], levels=[0.02, 0.2])
    assert found.levels == (0.02, 0.2)
    assert found.score == pytest.approx(expected.scores[0, 0], abs=1e-5)
    assert math.isnan(found.probability)


def test_images_that_cannot_be_read(scorer: Scorer, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ("bad.png", "none.png"):
        with pytest.raises(ImageError, match=name):
            scorer.explain(tmp_path / name, "a star")


def test_a_text_against_another(scorer: Scorer) -> None:
    first, second = scorer.explain(STAR, ["a large yellow star", "a large red star on the left"])
    contrast = first.against(second)
    gained = sum(t.score for w in first.words for t in w.tokens) / len(first.tokens)
    lost = sum(t.score for w in second.words for t in w.tokens) / len(second.tokens)
    assert contrast.difference == pytest.approx(gained - lost)
    assert contrast.difference > 0
    assert sum(it.difference for it in contrast.changes) == pytest.approx(contrast.difference)
    shown = [
        ([w.text for w in it.words], [w.text for w in it.others], it.same)
        for it in contrast.changes
    ]
    assert shown == [
        (["a"], ["a"], True),
        (["large"], ["large"], True),
        (["yellow"], ["red"], False),
        (["star"], ["star"], True),
        ([], ["on", "the", "left"], False),
        (["<end>"], ["<end>"], True),
    ]
    assert [it.text for it in contrast.decisive.words] == ["yellow"]
    back = second.against(first)
    assert back.difference == -contrast.difference
    assert [it.text for it in back.decisive.others] == ["yellow"]
    plain = json.loads(json.dumps(contrast.to_plain()))
    assert plain["against"] == second.text
    assert [it["words"] for it in plain["changes"]] == [it[0] for it in shown]
    same = first.against(first)
    assert same.difference == 0
    assert all(it.same for it in same.changes)


def test_without_maps_words_keep_their_heat_alone(starry: Explanation) -> None:
    small = starry.without_maps()
    assert (small.layers, small.pixels) == ((), None)
    for word, kept in zip(starry.words, small.words, strict=True):
        assert kept.heat is word.heat
    for asked in (small.heat, small.attention):
        with pytest.raises(InputError, match="without maps"):
            asked(0)
    with pytest.raises(InputError, match="without maps"):
        small.heat()
    assert small.against(small).difference == 0


def test_what_cannot_be_compared(scorer: Scorer, starry: Explanation) -> None:
    other = scorer.explain(STAR.with_name("lone-ring.png"), TEXTS[0])
    with pytest.raises(InputError, match="two images"):
        starry.against(other)
    with pytest.raises(InputError, match="two bundles"):
        starry.against(replace(starry, bundle_sha256="0" * 64))
    with pytest.raises(InputError, match="noise levels"):
        starry.against(scorer.explain(STAR, TEXTS[0], levels=[0.02]))
    with pytest.raises(InputError, match="takes an explanation"):
        starry.against("a star")  # type: ignore[arg-type]


def test_images_without_a_name_are_told_apart_by_their_pixels(
    scorer: Scorer, starry: Explanation
) -> None:
    with Image.open(STAR) as opened:
        picture = opened.convert("RGB")
    star, same = (scorer.explain(it, TEXTS[0]) for it in (picture, STAR.read_bytes()))
    ring = scorer.explain(STAR.with_name("lone-ring.png").read_bytes(), TEXTS[0])
    assert star.image == ring.image == "image 0"
    assert star.against(same).difference == pytest.approx(0, abs=1e-6)
    assert starry.against(star).difference == pytest.approx(0, abs=1e-6)  # of the same pixels
    with pytest.raises(InputError, match="two images"):
        star.against(ring)


def test_bundles_of_one_method_are_told_apart(
    scorer: Scorer, starry: Explanation, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    manifest = read_bundle(folder).manifest
    named = replace(manifest.provenance, base_model="another")
    other = write_bundle(folder, replace(manifest, provenance=named))
    with Scorer(other, "onnxruntime") as opened:
        found = opened.explain(STAR, TEXTS[0])
    assert found.method == starry.method
    with pytest.raises(InputError, match="two bundles"):
        starry.against(found)


def test_plain_values(starry: Explanation) -> None:
    plain = json.loads(json.dumps(starry.to_plain()))
    assert plain["rows"] == plain["columns"] == 8
    assert [it["word"] for it in plain["words"]] == ["a", "large", "yellow", "star", "<end>"]
    for word, it in zip(starry.words, plain["words"], strict=True):
        np.testing.assert_array_equal(np.array(it["heat"], np.float32), word.heat)


@pytest.fixture
def without(tmp_path: Path) -> Bundle:
    """The demonstration's bundle as earlier versions wrote it, without maps."""
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "older"))
    (folder / "maps.onnx").unlink()
    return write_bundle(folder, replace(read_bundle(EMBEDDED).manifest, maps=None))


def test_an_older_bundle_scores_and_says_how_to_get_maps(without: Bundle, scorer: Scorer) -> None:
    text = (without.folder / "bundle.json").read_text("utf-8")
    assert '"maps"' not in text
    older = Scorer(read_bundle(without.folder), "onnxruntime")
    expected = scorer.score([STAR], TEXTS).scores
    np.testing.assert_allclose(older.score([STAR], TEXTS).scores, expected, atol=1e-6)
    with pytest.raises(InputError, match="dsd-trt export --maps"):
        older.explain(STAR, "a star")


def test_matrix_mode_and_plans_have_none(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Scorer.load(engine="onnxruntime", mode="matrix") as scorer,
        pytest.raises(InputError, match="mode 'pair'"),
    ):
        scorer.explain(STAR, "a star")
    with Scorer.load(engine="onnxruntime") as scorer:
        plans = replace(scorer._pipeline.backend, reads_graphs=False)
        monkeypatch.setattr(scorer._pipeline, "backend", plans)
        with pytest.raises(EngineError, match="another engine"):
            scorer.explain(STAR, "a star")


@pytest.mark.parametrize("score", ["denoising", "attention+denoising"])
def test_scores_that_maps_do_not_explain(score: Any, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", score=score)
    with Scorer(made, "onnxruntime") as scorer, pytest.raises(InputError, match="no map shows"):
        scorer.explain(np.zeros((8, 8, 3), np.uint8), "a dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "none.onnx"}, "'maps.file' names 'none.onnx', which is not among the files"),
        ({"places": [[8, 8]]}, "'maps.places' needs one entry a scored layer"),
        ({"places": [[8]] * 7}, "'maps.places' must be pairs of rows and columns"),
        ({"places": [[0, 8]] * 7}, "maps.places"),
        ({"more": 1}, "'maps.more' is not known"),
    ],
)
def test_the_manifest_is_read_strictly(change: Any, message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    plain = json.loads((folder / "bundle.json").read_text("utf-8"))
    plain["maps"] |= change
    (folder / "bundle.json").write_text(json.dumps(plain))
    with pytest.raises(Exception, match=message.replace(".", r"\.")):
        read_bundle(folder)


def test_maps_of_another_bundle_fail_the_self_check(tmp_path: Path) -> None:
    """With other head weights in bundle.json, the pooled maps are no longer the scores."""
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    manifest = read_bundle(folder).manifest
    values = ((0.9, 0.05, 0.05, 0.0), *((0.0,) * 4,) * 6)
    weights = replace(manifest.method.head_weights, values=values)
    changed = write_bundle(
        folder, replace(manifest, method=replace(manifest.method, head_weights=weights))
    )
    with Scorer(changed, "onnxruntime") as scorer:
        scorer.score([STAR], TEXTS)  # whose graph has its own
        with pytest.raises(EngineError, match="self-check of the maps: score"):
            scorer.explain(STAR, TEXTS[0])
    with Scorer(changed, "onnxruntime", self_check=False) as scorer:
        scorer.explain(STAR, TEXTS[0])


def test_pooled_tokens_take_a_batch(scorer: Scorer) -> None:
    """Rows of a batch do not affect each other."""
    graph = with_maps(scorer.bundle).manifest.graphs["maps"]
    random = np.random.default_rng(1)
    maps = [random.random(spec.of_batch(3)).astype(np.float32) for spec in graph.outputs]
    mask = np.zeros((3, 77), np.float32)
    mask[:, 1:4] = 1
    together = pooled_tokens(maps, method(), mask)
    for row in range(3):
        alone = pooled_tokens([it[row : row + 1] for it in maps], method(), mask[row : row + 1])
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-12)
