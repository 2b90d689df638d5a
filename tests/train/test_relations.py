"""Relations: against closed forms and a loop over their formula, on disk, exported, and learned."""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
import torch
from cpp import CppScorer
from matrix_graphs import of_fixed_sizes
from numpy.typing import NDArray
from plans_on_cpu import Half

from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.contract import LARGEST_LAMBDA
from dsd_trt.bundle.folder import read_bundle
from dsd_trt.engine import pooled_attention
from dsd_trt.engine.cut import CutGraph
from dsd_trt.engine.onnxruntime import matrix as module
from dsd_trt.engine.onnxruntime.cpu import OnnxRuntimeEngine, run_session
from dsd_trt.engine.openvino.cut import largest, lift_attention, split
from dsd_trt.engine.tensorrt.plan import PARTS, Part, Profile
from dsd_trt.engines.gpu_check.feeds import draw_feeds
from dsd_trt.engines.layers import LayerTable, check_precision
from dsd_trt.engines.source import read_source
from dsd_trt.errors import ModelError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.build import build_relations, build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts, read_checkpoint
from dsd_trt.train.fewshot.encodings import Encodings, encode_candidates
from dsd_trt.train.imitation.fit import TEXTS as TEXTS_OF_AN_IMAGE
from dsd_trt.train.imitation.fit import Lessons, gather
from dsd_trt.train.imitation.fit_relations import fit_relations
from dsd_trt.train.imitation.two_modes import Matched, TwoModes
from dsd_trt.train.question import Question
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.choices import DEFAULT_LEVELS
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.relations import (
    FEATURES,
    LEAST_MASS,
    Relations,
    centre_basis,
    centres_of,
)
from dsd_trt.train.scoring.token_heads import TokenHeads

pytest_plugins = ("cpp", "exported")

TEXTS = ["a red circle", "two blue squares left of a star", "green", "a star"]
HEADS, FIRST, WIDTH = 12, 2, 32  # of the tiny checkpoint: all layers, the first one, text states


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return read_checkpoint(checkpoint_folder)


@torch.no_grad()
def drawn(made: Any, seed: int = 0, spread: float = 0.3) -> Any:
    """Token heads or relations with parameters drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.requires_grad_(False).parameters():
        parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return made


def drawn_relations(seed: int = 0) -> Relations:
    made: Relations = drawn(Relations(FIRST, WIDTH), seed, 0.1)
    return made


def drawn_heads() -> TokenHeads:
    made: TokenHeads = drawn(TokenHeads(HEADS, WIDTH), 1, 0.1)
    return made


# Closed forms


def test_a_map_of_one_token_has_its_place() -> None:
    attention = torch.zeros(6, 6)
    attention.fill_diagonal_(0.7)  # map i attends from image token i alone
    centres = centres_of(attention, 20.0, centre_basis(2, 3))
    x, y = (-2 / 3, 0, 2 / 3), (-1 / 2, 1 / 2)
    expected = [(x[i % 3], y[i // 3]) for i in range(6)]
    np.testing.assert_allclose(centres.numpy(), expected, atol=1e-6)


def test_the_centre_of_an_even_map_is_the_middle() -> None:
    centres = centres_of(torch.full((4, 20), 0.3), 20.0, centre_basis(4, 5))
    np.testing.assert_allclose(centres.numpy(), 0, atol=1e-6)


def test_two_tokens_pull_by_their_exponentials() -> None:
    attention = torch.tensor([0.05, 0.0, 0.0, 0.1])
    lam, (near, far) = 20.0, (math.e - 1, math.e**2 - 1)
    (x, y) = centres_of(attention, lam, centre_basis(1, 4)).tolist()
    assert x == pytest.approx((0.75 * far - 0.75 * near) / (near + far), abs=1e-6)
    assert y == 0


@pytest.mark.parametrize("lam", [1.0, LARGEST_LAMBDA, 300.0])
def test_centres_of_any_map_are_finite(lam: float) -> None:
    maps = torch.stack([torch.zeros(9), torch.ones(9), torch.full((9,), 1e-30)])
    centres = centres_of(maps, lam, centre_basis(3, 3))
    np.testing.assert_allclose(centres.numpy(), 0, atol=1e-5)


def test_roles_that_are_sure_give_the_features_themselves() -> None:
    """States that name their role: R is then C's row of the word between times the features."""
    relations = Relations(1, 3).requires_grad_(False)
    relations.roles.copy_(1e3 * torch.eye(3))
    weights = torch.arange(1.0, FEATURES + 1)
    relations.of_word[:, 2] = weights
    words = torch.eye(3)[None, None]  # (1, 1, 3, 3): one noun, the other, the word between
    pooled = torch.tensor([0.4, 0.3, 0.9]).view(1, 1, 1, 3)
    centres = torch.tensor([[-0.5, 0.25], [0.5, 0.75], [9.0, 9.0]]).view(1, 1, 1, 3, 2)
    dx, dy = -1.0, -0.5
    features = np.array([dx, dy, abs(dx), abs(dy), dx * dx, dy * dy, 0.4, 0.3, 1])
    found = relations(words, torch.ones(1, 1, 3), pooled, centres)
    np.testing.assert_allclose(found[0, 0], weights.numpy() * features, rtol=1e-6)


def test_a_text_without_counted_tokens_has_no_relation() -> None:
    words, mask = torch.randn(1, 2, 5, WIDTH), torch.zeros(1, 2, 5)
    found = drawn_relations()(
        words, mask, torch.rand(3, FIRST, 2, 5), torch.rand(3, FIRST, 2, 5, 2)
    )
    assert torch.equal(found, torch.zeros(3, 2, FEATURES))


# The formula


def by_loop(
    scorer: MatrixScorer, relations: Relations, latents: Any, level: int, texts: Any, masks: Any
) -> NDArray[np.float64]:
    """R (images, texts), one token, head and image token at a time."""
    scoring, (height, width) = scorer.scoring, latents.shape[2:]
    found = np.zeros((len(latents), len(texts)))
    heads = relations.heads.double().softmax(dim=1).numpy()
    roles, of_word, base = (
        it.double().numpy() for it in (relations.roles, relations.of_word, relations.base)
    )
    weight = scoring.unet.get_submodule(scoring.layer_names[0]).attn2.to_k.weight
    for i, j in np.ndindex(*found.shape):
        query = scorer.queries(latents[i : i + 1], torch.tensor([level]))[0]
        side = scorer.query_pool
        assert query.shape[2] == (height // side) * (width // side)
        states, tokens = texts[j].double().numpy(), np.flatnonzero(masks[j])
        shares = []
        for role in roles:
            each = {t: math.exp(float(states[t] @ role)) for t in tokens}
            shares.append({t: it / sum(each.values()) for t, it in each.items()})
        seen = np.zeros((2, 3))
        for head in range(query.shape[1]):
            part = slice(head * query.shape[3], (head + 1) * query.shape[3])
            attention = (query[0, head] @ (texts[j] @ weight[part].T).T).softmax(dim=1).double()
            for t in tokens:
                mass, place = 0.0, np.zeros(2)
                for n, a in enumerate(attention[:, t].tolist()):
                    row, column = divmod(n, width // side)
                    xy = (
                        2 * (column + 0.5) * side / width - 1,
                        2 * (row + 0.5) * side / height - 1,
                    )
                    mass += math.exp(scoring.lam * a) - 1
                    place += (math.exp(scoring.lam * a) - 1) * np.array(xy)
                pooled = math.log(mass / len(attention) + 1) / scoring.lam
                for k in range(2):
                    centre = place / max(mass, len(attention) * LEAST_MASS)
                    value = np.array([*centre, pooled])
                    seen[k] += shares[k][t] * heads[k, head] * value
        dx, dy = seen[0, :2] - seen[1, :2]
        features = np.array([dx, dy, abs(dx), abs(dy), dx**2, dy**2, seen[0, 2], seen[1, 2], 1])
        relation = sum(shares[2][t] * (of_word @ states[t] + base) for t in tokens)
        found[i, j] = relation @ features
    return found


@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "pool", "seed"),
    # With the last noise, a map has a mass below LEAST_MASS.
    [((8, 8), 1, 0), ((8, 4), 1, 0), ((8, 8), 4, 0), ((4, 8), 2, 0), ((4, 8), 2, 16)],
)
def test_scores_are_those_of_the_formula(
    checkpoint: Checkpoint, shape: tuple[int, int], pool: int, seed: int
) -> None:
    relations, heads = drawn_relations(), drawn_heads()
    states, masks = encode_texts(checkpoint, TEXTS)
    scoring = build_scoring_unet(checkpoint, None, levels=(0.2, 0.8))
    if shape != (8, 8):
        generator = torch.Generator().manual_seed(seed)
        scoring.eps = torch.randn(*scoring.eps.shape[:-2], *shape, generator=generator)
    empty = encode_texts(checkpoint, [""])[0]
    without = MatrixScorer(scoring, empty, pool, heads)
    scorer = MatrixScorer(scoring, empty, pool, heads, relations)
    latents = torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(5))
    level = torch.ones(2, dtype=torch.long)
    expected = by_loop(scorer, relations, latents, 1, states, masks)
    assert expected.std() > 1e-2  # or agreement would mean nothing
    expected += without(latents, level, states, masks).numpy()
    assert np.abs(scorer(latents, level, states, masks).numpy() - expected).max() < 1e-5
    each = scorer.score(latents, level, states[None], masks[None]).numpy()
    assert np.abs(each - expected).max() < 1e-5
    own = scorer.score(latents, level, states.expand(2, -1, -1, -1), masks.expand(2, -1, -1))
    assert np.abs(own.numpy() - expected).max() < 1e-5
    narrow = int(masks.amax(dim=0).nonzero().max()) + 1  # as wide as the longest text
    assert np.abs(scorer(latents, level, states, masks[:, :narrow]).numpy() - expected).max() < 1e-5


@torch.no_grad()
def test_keys_may_depend_on_the_image(checkpoint: Checkpoint, adapter_folder: Path) -> None:
    scoring = build_scoring_unet(checkpoint, Adapter.load(adapter_folder))
    empty = encode_texts(checkpoint, [""])[0]
    scorer = MatrixScorer(scoring, empty, 1, drawn_heads(), drawn_relations())
    states, masks = encode_texts(checkpoint, TEXTS)
    latents, level = torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    fast = scorer(latents, level, states, masks)
    exact = scorer.score(latents, level, states[None], masks[None])
    assert fast.std() > 1e-2
    assert (fast - exact).abs().max() < 1e-5
    scorer.relations = None
    assert (fast - scorer(latents, level, states, masks)).abs().max() > 1e-2


def test_relations_need_token_heads(checkpoint: Checkpoint) -> None:
    scoring = build_scoring_unet(checkpoint, None)
    empty = encode_texts(checkpoint, [""])[0]
    with pytest.raises(ValueError, match="token heads"):
        MatrixScorer(scoring, empty, relations=drawn_relations())


# On disk


def adapter(relations: Relations) -> Adapter:
    plain = Adapter.unchanged("attention", DEFAULT_LEVELS)
    heads = drawn_heads().state_dict()
    return replace(plain, token_heads=heads, relations=relations.state_dict())


def test_an_adapter_keeps_them(tmp_path: Path, checkpoint: Checkpoint) -> None:
    relations = drawn_relations()
    adapter(relations).save(tmp_path)
    read = Adapter.load(tmp_path)
    found = build_relations(build_scoring_unet(checkpoint, read), read)
    assert found is not None
    for name, value in relations.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    some = build_scoring_unet(checkpoint, read, score_layers=[0, 1])
    assert build_relations(some, read) is None  # as the token heads that they are added to


@pytest.mark.parametrize("name", ["roles", "heads", "of_word", "base"])
def test_parts_that_are_missing_or_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    whole = adapter(drawn_relations())
    rest = {key: value for key, value in whole.relations.items() if key != name}
    replace(whole, relations=rest).save(tmp_path)
    with pytest.raises(ModelError, match="its relations are not roles, heads, of_word, base"):
        Adapter.load(tmp_path)
    for shape in ((5,), (4, 5), (2, 5, 1)):
        replace(whole, relations=rest | {name: torch.zeros(shape)}).save(tmp_path)
        with pytest.raises(ModelError, match=rf"relations\.{name} is"):
            Adapter.load(tmp_path)


def test_relations_without_token_heads_are_refused(tmp_path: Path) -> None:
    replace(adapter(drawn_relations()), token_heads={}).save(tmp_path)
    with pytest.raises(ModelError, match="relations without token heads"):
        Adapter.load(tmp_path)


def test_those_of_another_model_are_refused(checkpoint: Checkpoint) -> None:
    other = adapter(Relations(FIRST + 1, WIDTH).requires_grad_(False))
    with pytest.raises(ModelError, match="relations are not of 2 heads"):
        build_relations(build_scoring_unet(checkpoint, other), other)


# Learned


def things(rng: np.random.Generator) -> str:
    colours, shapes = rng.permutation(["red", "blue", "white"]), rng.permutation(["circle", "star"])
    first, second = zip(colours, shapes, strict=False)
    return (
        f"a {' '.join(first)} {rng.choice(['left of', 'right of', 'below'])} a {' '.join(second)}"
    )


@torch.no_grad()
def lessons_of(
    checkpoint: Checkpoint, teacher: Relations | None, images: int = 120
) -> tuple[TwoModes, Lessons]:
    """Lessons of maps with centres anywhere, by a teacher of token heads and relations."""
    rng = np.random.default_rng(0)
    texts = list(dict.fromkeys(things(rng) for _ in range(200)))
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    question = Question("", tuple((image, it) for it in texts), 0, "")
    modes = TwoModes(checkpoint, None, encode_candidates(checkpoint, [question]))
    generator = torch.Generator().manual_seed(1)
    size = (images, len(texts), modes.tokens)
    matched = Matched(
        torch.rand(*size, HEADS, generator=generator).half(),
        (2 * torch.rand(*size, FIRST, 2, generator=generator) - 1).half(),
    )
    every = np.arange(len(texts))
    scores = torch.from_numpy(modes.estimates(drawn_heads(), matched, every, teacher))
    return modes, Lessons(matched, np.tile(every, (images, 1)), scores)


@torch.no_grad()
def test_estimates_are_those_of_the_scorer(checkpoint: Checkpoint) -> None:
    states, masks = encode_texts(checkpoint, TEXTS)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    latent = checkpoint.image_encoder(torch.from_numpy(image))
    empty = encode_texts(checkpoint, [""])[0]
    encodings = Encodings(latent, states, masks, empty, 0, {}, {})
    modes = TwoModes(checkpoint, None, encodings)
    texts = np.arange(len(TEXTS))
    scorer = modes.matrix
    scorer.token_heads, scorer.relations = drawn_heads(), drawn_relations()
    expected = scorer(latent, torch.tensor([modes.list_level]), states, masks).numpy()
    found = modes.estimates(drawn_heads(), modes.match(0, texts), texts, drawn_relations())
    assert expected.std() > 1e-2
    assert np.abs(found - expected).max() < 2e-3  # what is seen is kept in FP16


def test_what_a_teacher_sees_of_places_is_learned(checkpoint: Checkpoint) -> None:
    teacher = drawn(Relations(FIRST, WIDTH), 3, 0.5)
    modes, lessons = lessons_of(checkpoint, teacher)
    known, new = slice(0, 90), slice(90, 120)
    some = Lessons(lessons.matched[known], lessons.texts[known], lessons.scores[known])
    found = fit_relations(modes, some, drawn_heads())
    assert found.relations is not None
    assert found.loss < found.without
    assert "kept" in found.line()

    def agreement(relations: Relations | None) -> float:
        texts = lessons.texts[0]
        made = modes.estimates(drawn_heads(), lessons.matched[new], texts, relations)
        pairs = zip(made, lessons.scores[new].numpy(), strict=True)
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))

    assert agreement(found.relations) > 0.9
    assert agreement(found.relations) > agreement(None) + 0.2
    missed = modes.estimates(drawn_heads(), lessons.matched, lessons.texts[0], found.relations)
    wanted = modes.estimates(drawn_heads(), lessons.matched, lessons.texts[0])
    assert abs((missed - wanted).mean()) < 0.1 * float(lessons.scores.std())  # offset as before


def test_relations_that_do_not_help_are_left_out(checkpoint: Checkpoint) -> None:
    """The teacher is made of the token heads alone: nothing can be better than they are."""
    modes, lessons = lessons_of(checkpoint, None)
    found = fit_relations(modes, lessons, drawn_heads())
    assert found.relations is None
    assert "left out" in found.line()


def test_an_image_is_scored_with_the_texts_it_rejects(checkpoint: Checkpoint) -> None:
    modes, lessons = lessons_of(checkpoint, None, images=1)
    every = lessons.texts[0]
    own = [[int(every[-1]), int(every[-2]), int(every[-3])]] * 4
    rng = np.random.default_rng(0)
    drawn_from = every[:-3]
    found = gather(modes, np.zeros(4, np.intp), drawn_from, own, rng)
    for number, texts in enumerate(found.texts):
        assert len(set(texts.tolist())) == len(texts) == min(TEXTS_OF_AN_IMAGE, len(drawn_from))
        assert (set(own[0]) <= set(texts.tolist())) == bool(number % 2)


# Exported


@pytest.fixture(scope="module")
def bundles(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Bundles without relations and with them."""
    folder = tmp_path_factory.mktemp("relations")
    whole = adapter(drawn_relations())
    made = []
    for name, it in (("without", replace(whole, relations={})), ("with", whole)):
        it.save(folder / f"{name}-adapter")
        settings = ExportSettings(str(checkpoint_folder), folder / f"{name}-adapter", matrix=True)
        export_bundle(settings, folder / name)
        made.append(read_bundle(folder / name))
    return made


@torch.no_grad()
def expected_scores(checkpoint: Checkpoint, pictures: Any) -> NDArray[np.float32]:
    scorer = MatrixScorer(
        build_scoring_unet(checkpoint, None),
        encode_texts(checkpoint, [""])[0],
        token_heads=drawn_heads(),
        relations=drawn_relations(),
    )
    latents = checkpoint.image_encoder(torch.from_numpy(pictures))
    states, masks = encode_texts(checkpoint, TEXTS)
    count = len(pictures)
    each = [scorer(latents, torch.full((count,), level), states, masks) for level in range(4)]
    mean: NDArray[np.float32] = torch.stack(each).mean(dim=0).numpy()
    return mean


@pytest.mark.slow
def test_a_bundle_scores_with_them(bundles: list[Bundle], checkpoint: Checkpoint) -> None:
    pictures = np.random.default_rng(4).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = expected_scores(checkpoint, pictures)
    for engine in ("onnxruntime", "openvino"):
        with Scorer.load(bundles[1].folder, engine=engine, mode="matrix") as opened:
            for count in (1, 2):
                found = opened.score(list(pictures[:count]), TEXTS).scores
                assert np.abs(found - expected[:count]).max() < 1e-5
        with Scorer.load(bundles[0].folder, engine=engine, mode="matrix") as opened:
            found = opened.score(list(pictures), TEXTS).scores
            assert np.abs(found - expected).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [True, False])
def test_maps_that_are_made_have_few_texts(
    kernel: bool, bundles: list[Bundle], checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernel, their size is bounded on ONNX Runtime; with it there are none."""
    if not kernel:
        monkeypatch.setattr("dsd_trt.engine.pooled_attention.available", lambda: False)
    elif not pooled_attention.available():
        pytest.skip("no kernel")
    numbers = 4 * FIRST * 64 * 77  # of one text at four levels, in the first layer
    monkeypatch.setattr(module, "NUMBERS", 2 * numbers)
    texts = []

    def run(session: Any, outputs: Any, given: Any) -> Any:
        if outputs == ["score"]:
            texts.append(len(given["text_states"]))
        return run_session(session, outputs, given)

    monkeypatch.setattr(module, "run_session", run)
    pictures = np.random.default_rng(4).integers(0, 256, (1, 32, 32, 3), np.uint8)
    for bundle in bundles:
        with Scorer.load(bundle.folder, engine="onnxruntime", mode="matrix") as opened:
            texts.clear()
            found = opened.score(list(pictures), TEXTS).scores
        assert max(texts) == (len(TEXTS) if kernel else 2)
    assert np.abs(found - expected_scores(checkpoint, pictures)).max() < 1e-5


@pytest.mark.slow
def test_walk_and_match_are_the_whole_graph(bundles: list[Bundle]) -> None:
    """Both halves, as TensorRT compiles them."""
    graph = bundles[1].manifest.graphs["matrix_scorer"]
    whole = OnnxRuntimeEngine(bundles[1].path(graph.file), graph)
    for rows, texts, tokens in ((1, 3, 16), (4, 2, 77)):
        feeds = draw_feeds(bundles[1], "matrix_scorer", {"I": rows, "T": texts, "L": tokens})
        given = Half(bundles[1], "walk").run(feeds)
        (scores,) = Half(bundles[1], "match").run({**feeds, **given}).values()
        np.testing.assert_allclose(scores, whole.run(feeds)["score"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_tensorrt_parses_each_half(bundles: list[Bundle], part: Part) -> None:
    source = read_source(tensorrt_rtx, bundles[1], "matrix_scorer", part, (Profile(1, 2, 4),))
    check_precision(LayerTable.of(source.network), bundles[1].manifest, "matrix_scorer", part)


@pytest.mark.slow
def test_the_cpp_library_scores_with_them(
    bundles: list[Bundle], checkpoint: Checkpoint, cpp_library: ctypes.CDLL
) -> None:
    pictures = np.random.default_rng(4).integers(0, 256, (2, 32, 32, 3), np.uint8)
    scorer = CppScorer(cpp_library, bundles[1].folder, mode="matrix")
    scores, _, errors = scorer.score(list(pictures), TEXTS, ())
    scorer.close()
    assert errors == ["", ""]
    assert np.abs(scores - expected_scores(checkpoint, pictures)).max() < 1e-5


@pytest.mark.slow
def test_every_layer_is_still_lifted_out(bundles: list[Bundle]) -> None:
    cuts = []
    for bundle in bundles:
        path = bundle.path(bundle.manifest.graphs["matrix_scorer"].file)
        cuts.append(CutGraph(path.read_bytes(), ["text_states", "token_mask"]))
    assert len(cuts[1].attention) == len(cuts[0].attention) > 1
    assert len(cuts[1].crossing) == len(cuts[0].crossing)
    for cut, of_first in zip(cuts, (False, True), strict=True):
        assert [it.moments is not None for it in cut.attention] == [
            of_first,
            *[False] * (len(cut.attention) - 1),
        ]


@pytest.mark.slow
def test_openvino_lifts_moments_out_too(bundles: list[Bundle]) -> None:
    match = split(of_fixed_sizes(bundles[1]), 2)[1]
    maps = largest(match)
    lifted = lift_attention(match)
    first, *others = (layer.moments for layer in lifted.layers)
    assert first is not None
    np.testing.assert_array_equal(first.basis, centre_basis(8, 8).numpy())
    assert others == [None] * len(others)
    assert maps > 4 * max(map(largest, lifted.parts))
