"""Matrix mode: against a loop over its definition, exported, trained for, and served."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
import torch
from checkpoints import write_adapter
from exported import Exported
from gradients import require_gradient_is_slope
from matrix_graphs import of_fixed_sizes
from numpy.typing import NDArray
from processor import BF16
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsd_trt import Bundle, Scorer
from dsd_trt.batching import MAX_TEXTS
from dsd_trt.bundle.lists import Lists
from dsd_trt.bundle.method import Mode
from dsd_trt.engine import pooled_attention
from dsd_trt.engine.openvino.cut import largest, lift_attention, split
from dsd_trt.engine.openvino.matrix import OpenVinoMatrixEngine
from dsd_trt.engine.pooled_attention import pool_attention, tile_width
from dsd_trt.engines.macs import count_macs as count_by_tensorrt
from dsd_trt.engines.network import parse
from dsd_trt.errors import InputError
from dsd_trt.export.benchmark.macs import count_macs
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts, read_checkpoint
from dsd_trt.train.evaluation.by_model import by_model
from dsd_trt.train.fewshot.batch import sample_batch
from dsd_trt.train.fewshot.comparison import compare
from dsd_trt.train.fewshot.encodings import encode_questions
from dsd_trt.train.fewshot.fit import fit_adapter
from dsd_trt.train.fewshot.model import build_model, validate
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.question import Question
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.choices import DEFAULT_LEVELS
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.prompts import MatrixPrompt
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

pytest_plugins = ("exported",)

TEXTS = ["a red circle", "two blue squares left of a star", "green", "a star"]
LEVELS = (0.2, 0.8)
TOP_LEVEL = 64  # image tokens of the finest layers


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return read_checkpoint(checkpoint_folder)


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), np.uint8)


def by_definition(
    checkpoint: Checkpoint,
    adapter: Adapter | None,
    pictures: NDArray[np.uint8],
    pool: int = 1,
    texts: list[str] = TEXTS,
) -> NDArray[np.float64]:
    """(images, texts), one pair, level, layer and head at a time, with W' written out whole."""
    plain = build_scoring_unet(checkpoint, None, levels=LEVELS)
    prompted = build_scoring_unet(checkpoint, adapter, levels=LEVELS)
    states, masks = encode_texts(checkpoint, texts)
    empty, _ = encode_texts(checkpoint, [""])
    latents = checkpoint.image_encoder(torch.from_numpy(pictures))
    scores = np.zeros((len(pictures), len(texts)))
    for i, j, level in np.ndindex(len(pictures), len(texts), len(LEVELS)):
        latent, at = latents[i : i + 1], torch.tensor([level])
        pi = None if prompted.prompts is None else prompted.prompts.pi(latent)
        z_t = plain.add_noise(latent, at)
        token_scores, first = torch.zeros(77), 0
        for seen in plain.cross_attentions(z_t, plain.timesteps[at], empty):
            attn = plain.unet.get_submodule(plain.layer_names[seen.layer]).attn2
            weight = attn.to_k.weight  # W_k
            if prompted.prompts is not None and pi is not None:
                prompt = prompted.prompts.key[seen.layer]
                assert isinstance(prompt, MatrixPrompt)
                weight = weight + prompt.static() + torch.outer(prompt.u, pi[seen.layer, 0, 0])
            keys = states[j] @ weight.T  # (77, inner)
            queries = seen.image_states[0] @ attn.to_q.weight.T  # (n, inner)
            if pool > 1 and len(queries) == TOP_LEVEL:
                side = math.isqrt(TOP_LEVEL)
                cells = queries.view(side // pool, pool, side // pool, pool, -1)
                queries = cells.mean(dim=(1, 3)).flatten(0, 1)
            width = len(weight) // attn.heads
            for head in range(attn.heads):
                part = slice(head * width, (head + 1) * width)
                attention = (queries[:, part] @ keys[:, part].T / math.sqrt(width)).softmax(dim=1)
                mean = (plain.lam * attention).exp().mean(dim=0)
                token_scores += prompted.head_weights[first + head] * mean.log() / plain.lam
            first += attn.heads
        counted = masks[j].bool()
        scores[i, j] += token_scores[counted].mean().item() / len(LEVELS)
    return scores


def whole(checkpoint: Checkpoint, scoring: ScoringUNet, pictures: Any, pool: int = 1) -> Any:
    """The same by `MatrixScorer`, all pairs at once."""
    scorer = MatrixScorer(scoring, encode_texts(checkpoint, [""])[0], pool)
    latents = checkpoint.image_encoder(torch.from_numpy(pictures))
    each = [
        scorer(latents, torch.full((len(latents),), level), *encode_texts(checkpoint, TEXTS))
        for level in range(len(LEVELS))
    ]
    return torch.stack(each).mean(dim=0).numpy()


@torch.no_grad()
@pytest.mark.parametrize("pool", [1, 2, 4])
@pytest.mark.parametrize("adapted", [False, True])
def test_it_is_what_its_definition_says(
    checkpoint: Checkpoint, adapter_folder: Path, pictures: Any, adapted: bool, pool: int
) -> None:
    adapter = Adapter.load(adapter_folder) if adapted else None
    expected = by_definition(checkpoint, adapter, pictures, pool)
    assert expected.std() > 1e-3  # or agreement would mean nothing
    scoring = build_scoring_unet(checkpoint, adapter, levels=LEVELS)
    assert np.abs(whole(checkpoint, scoring, pictures, pool) - expected).max() < 1e-5


@torch.no_grad()
def test_a_large_lambda_does_not_overflow(checkpoint: Checkpoint, pictures: Any) -> None:
    scores = {}
    for lam in (63.0, 65.0, 300.0):
        scoring = build_scoring_unet(checkpoint, None, levels=LEVELS, lam=lam)
        scores[lam] = whole(checkpoint, scoring, pictures)
        assert np.isfinite(scores[lam]).all()
    assert np.abs(scores[63.0] - scores[65.0]).max() < 2e-3  # one way on either side of 64
    assert (scores[300.0] > scores[63.0]).all()  # nearer to the maximum


@pytest.mark.parametrize(
    "settings", [{"pooling": "max"}, {"score": "denoising"}, {"pooling": "cosine"}]
)
def test_what_it_cannot_score_is_refused(checkpoint: Checkpoint, settings: Any) -> None:
    scoring = build_scoring_unet(checkpoint, None, **settings)
    with pytest.raises(ValueError, match="matrix mode has the score"):
        MatrixScorer(scoring, torch.zeros(1, 77, 32))


# Exported


@pytest.fixture(scope="session")
def bundle(exported_fp32: Exported) -> Bundle:
    return exported_fp32.bundle


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Registers that the kernel was called to use, each time it was."""
    widths: list[int | None] = []

    def recorded(layers: Any, threads: int, width: int | None = None) -> None:
        widths.append(width)
        pool_attention(layers, threads, width)

    for engine in ("onnxruntime", "openvino"):
        monkeypatch.setattr(f"dsd_trt.engine.{engine}.matrix.pool_attention", recorded)
    return widths


@torch.no_grad()
@pytest.mark.parametrize(
    ("engine", "kernel", "tolerance"),
    [
        ("onnxruntime", True, 1e-5),
        ("onnxruntime", False, 1e-5),
        ("openvino", True, 1e-4),
        ("openvino", False, 1e-4),
    ],
)
def test_a_bundle_serves_it(
    bundle: Bundle,
    checkpoint: Checkpoint,
    adapter_folder: Path,
    pictures: Any,
    engine: str,
    kernel: bool,
    tolerance: float,
    calls: list[int | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not kernel:
        monkeypatch.setattr("dsd_trt.engine.pooled_attention.available", lambda: False)
    # Masks of several widths; the first is not the narrowest.
    texts = ["a red circle and " * 9 + "a star", *TEXTS, "a blue square, " * 5]
    expected = by_definition(checkpoint, Adapter.load(adapter_folder), pictures, texts=texts)
    matrix = Scorer.load(bundle.folder, engine, mode="matrix").score(list(pictures), texts)
    assert bool(calls) == (kernel and pooled_attention.available())
    assert np.abs(matrix.scores - expected).max() < tolerance
    assert matrix.probabilities == pytest.approx(1 / (1 + np.exp(1 - 5 * expected)), abs=1e-3)


def test_no_map_of_attention_is_left(bundle: Bundle) -> None:
    match = split(of_fixed_sizes(bundle), 2)[1]
    maps = largest(match)
    lifted = lift_attention(match)
    left = [node.get_type_name() for part in lifted.parts for node in part.get_ops()]
    assert "Softmax" not in left
    assert maps > 4 * max(map(largest, lifted.parts))
    assert {layer.lam for layer in lifted.layers} == {20.0}


@pytest.mark.skipif(not BF16, reason="this processor does not compute in BF16")
def test_tiles_are_for_bf16_alone(bundle: Bundle, calls: list[int | None]) -> None:
    graph = bundle.manifest.graphs["matrix_scorer"]
    sizes = {"I": 1, "T": 1, "L": 16}
    feeds = {
        spec.name: np.ones([n if isinstance(n, int) else sizes[n] for n in spec.shape], spec.dtype)
        for spec in graph.inputs
    }
    for bf16 in (False, True)[: 1 + BF16]:
        OpenVinoMatrixEngine(bundle.path(graph.file), graph, bf16=bf16).run(feeds)
    expected = [None, tile_width()][: 1 + BF16]
    assert calls == (expected if pooled_attention.available() else [])


def test_its_macs_are_those_tensorrt_counts(bundle: Bundle) -> None:
    graph = bundle.manifest.graphs["matrix_scorer"]
    path = bundle.path(graph.file)
    assert count_macs(path, graph) == count_by_tensorrt(parse(tensorrt_rtx, path), graph) > 1e6


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 3])
def test_macs_of_a_further_text_are_those_pytorch_counts(
    bundle: Bundle, checkpoint: Checkpoint, adapter_folder: Path, pictures: Any, images: int
) -> None:
    # Of the walk, PyTorch counts what the export leaves out, as queries that are made twice.
    graph = bundle.manifest.graphs["matrix_scorer"]
    scoring = build_scoring_unet(checkpoint, Adapter.load(adapter_folder), levels=LEVELS)
    scorer = MatrixScorer(scoring, encode_texts(checkpoint, [""])[0])
    scorer.fold_static_prompts()
    latents = checkpoint.image_encoder(torch.from_numpy(pictures[:images]))
    level = torch.zeros(images, dtype=torch.long)
    ours, theirs = [], []
    for count in (1, 3):
        texts = encode_texts(checkpoint, TEXTS[:count])
        # Of fused attention it counts nothing.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            scorer(latents, level, *texts)
        theirs.append(counter.get_total_flops() / 2)
        ours.append(count_macs(bundle.path(graph.file), graph, I=images, T=count))
    assert ours[1] - ours[0] == theirs[1] - theirs[0] > 1e5


def test_blocks_and_company_change_nothing(bundle: Bundle, pictures: Any) -> None:
    at_once = Scorer.load(bundle.folder, "onnxruntime", mode="matrix")
    in_parts = Scorer.load(bundle.folder, "onnxruntime", memory_budget_mb=0.01, mode="matrix")
    assert in_parts._pipeline.batch.matrix == (1, MAX_TEXTS)
    expected = at_once.score(list(pictures), TEXTS).scores
    assert np.abs(in_parts.score(list(pictures), TEXTS).scores - expected).max() < 1e-6
    pairs = [(pictures[i], TEXTS[j]) for i, j in [(0, 1), (2, 0), (0, 3)]]
    scores = at_once.score_pairs(pairs).scores
    assert scores == pytest.approx(expected[[0, 2, 0], [1, 0, 3]], abs=1e-6)
    some = at_once.score(list(pictures), TEXTS, levels=[0.8]).scores
    other = at_once.score(list(pictures), TEXTS, levels=[0.2]).scores
    assert (some + other) / 2 == pytest.approx(expected, abs=1e-6)


def test_progress_counts_pairs(bundle: Bundle, pictures: Any) -> None:
    told: list[tuple[int, int | None]] = []
    scorer = Scorer.load(bundle.folder, "onnxruntime", mode="matrix")
    scorer.score(list(pictures), TEXTS, progress=lambda *counts: told.append(counts))
    assert told[-1] == (12, 12)


@pytest.mark.slow  # exports
def test_fp16_is_held_to_the_same_parity(exported_fp32: Exported, tmp_path: Path) -> None:
    settings = replace(exported_fp32.settings, precision="fp16", verify="quick", query_pool=2)
    fp16, report = export_bundle(settings, tmp_path / "bundle")
    assert fp16.manifest.matrix is not None
    assert fp16.manifest.matrix.query_pool == 2
    for run in report.runs:
        assert run.matrix is not None
        assert run.matrix.spearman > 0.999


@pytest.mark.parametrize(
    ("trained", "asked", "chosen", "warned"),
    [
        ("pair", "auto", "pair", False),
        ("pair", "matrix", "matrix", True),
        ("both", "auto", "pair", False),
        ("both", "matrix", "matrix", False),
        ("matrix", "auto", "matrix", False),
        ("matrix", "pair", "pair", True),
        (None, "matrix", "matrix", False),
    ],
)
def test_another_mode_than_it_was_trained_for_is_warned_of(
    bundle: Bundle,
    caplog: pytest.LogCaptureFixture,
    trained: Any,
    asked: Any,
    chosen: str,
    warned: bool,
) -> None:
    method = replace(bundle.manifest.method, trained_for=trained)
    told = Bundle(bundle.folder, replace(bundle.manifest, method=method))
    with caplog.at_level(logging.WARNING):
        assert Scorer(told, "onnxruntime", mode=asked).mode == chosen
    assert ("was trained for" in caplog.text) == warned


def test_matrix_mode_that_estimates_pair_mode_is_not_warned_of(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    method = replace(bundle.manifest.method, trained_for="pair")
    assert bundle.manifest.matrix is not None
    matrix = replace(bundle.manifest.matrix, lists=Lists(0, 100, 0.01, {}, {}))
    manifest = replace(bundle.manifest, method=method, matrix=matrix)
    assert Scorer(Bundle(bundle.folder, manifest), "onnxruntime", mode="matrix").mode == "matrix"
    assert "was trained for" not in caplog.text


def test_a_bundle_without_it_says_how_to_get_it(fed_fp32: Bundle) -> None:
    with pytest.raises(InputError, match="dsd-trt export --matrix"):
        Scorer.load(fed_fp32.folder, "onnxruntime", mode="matrix")
    assert fed_fp32.manifest.matrix is None


def test_what_goes_with_it_not_is_said_before_any_work(
    checkpoint_folder: Path, exported_fp32: Exported, tmp_path: Path
) -> None:
    settings = replace(exported_fp32.settings, adapter_input=True)
    with pytest.raises(InputError, match="leave out --adapter-input"):
        export_bundle(settings, tmp_path / "out")
    dynamic = write_adapter(tmp_path / "dynamic", checkpoint_folder, head_mode="dynamic")
    settings = ExportSettings(str(checkpoint_folder), dynamic, matrix=True)
    with pytest.raises(InputError, match="head weights that are not dynamic"):
        export_bundle(settings, tmp_path / "out")


# Trained


@pytest.fixture
def questions(pictures: Any) -> list[Question]:
    """Three pictures, each to be known by name."""
    return [
        Question("text", tuple((pictures[i], text) for text in TEXTS[:3]), i, f"picture {i}")
        for i in range(3)
    ]


LEARNING = FewShotSettings(
    steps=3, questions=3, negatives=2, learning_rate=3e-2, rank=2, hidden=8, levels=LEVELS,
    loss="softmax", hard=1.0,
)  # fmt: skip


@pytest.mark.parametrize("mode", ["matrix", "both"])
def test_gradients_are_the_slope_of_the_loss(
    checkpoint: Checkpoint, questions: list[Question], mode: Any
) -> None:
    examples = encode_questions(checkpoint, questions)
    settings = replace(LEARNING, mode=mode)
    model = build_model(checkpoint, examples, settings)
    batch = sample_batch(examples, settings, np.random.default_rng(3))
    inputs = batch.inputs(examples, torch.device("cpu"))

    def loss() -> torch.Tensor:
        return torch.stack(
            [batch.loss(of_mode, settings.loss) for of_mode in model(*inputs)]
        ).mean()

    require_gradient_is_slope(model.parameters(), loss)


@pytest.fixture(params=["matrix", "both"])
def trained(
    request: pytest.FixtureRequest,
    checkpoint: Checkpoint,
    questions: list[Question],
    tmp_path: Path,
) -> Path:
    """An adapter after three steps."""
    settings = replace(LEARNING, mode=request.param)
    fitted = fit_adapter(checkpoint, encode_questions(checkpoint, questions), settings)
    assert fitted.adapter.mode == request.param
    assert fitted.adapter.matrix_a != 1.0
    assert (fitted.adapter.a != 1.0) == (request.param == "both")
    fitted.adapter.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_question_has_one_answer_right_in_every_trained_mode(
    checkpoint: Checkpoint, questions: list[Question], trained: Path
) -> None:
    """Questions with each of their candidates as the right one, before and after training."""
    adapter = Adapter.load(trained)
    every = [replace(it, right=right) for it in questions for right in range(3)]
    examples = encode_questions(checkpoint, every)
    settings = replace(LEARNING, mode=adapter.mode, levels=DEFAULT_LEVELS)

    def answers(adapter: Path | None) -> tuple[bool, ...]:
        of_modes = [
            by_model(str(checkpoint.source.parts.path), adapter, mode=mode)(every)
            for mode in settings.modes
        ]
        return tuple(
            all(np.argmax(scores[i]) == it.right for scores in of_modes)
            for i, it in enumerate(every)
        )

    found = compare(checkpoint, None, adapter, examples, settings.modes, held_out=True)
    assert (found.before, found.after) == (answers(None), answers(trained))
    untrained = validate(build_model(checkpoint, examples, settings), examples, 0)
    assert untrained.answers == found.before


def test_an_adapter_learns_for_it(
    checkpoint: Checkpoint, questions: list[Question], pictures: Any, trained: Path
) -> None:
    expected = by_definition(checkpoint, Adapter.load(trained), pictures, texts=TEXTS[:3])
    before = by_definition(checkpoint, None, pictures, texts=TEXTS[:3])
    assert np.abs(expected - before).max() > 1e-4
    model = str(checkpoint.source.parts.path)
    got = by_model(model, trained, mode="matrix")(questions)
    assert np.array(got) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow  # exports
def test_what_was_trained_for_it_is_served(
    checkpoint: Checkpoint, questions: list[Question], pictures: Any, trained: Path, tmp_path: Path
) -> None:
    model = str(checkpoint.source.parts.path)
    bundle, _ = export_bundle(ExportSettings(model, trained, verify="quick"), tmp_path / "bundle")
    modes: list[Mode] = ["matrix", "pair"] if Adapter.load(trained).mode == "both" else ["matrix"]
    for mode in modes:
        scorer = Scorer.load(bundle.folder, "onnxruntime", mode=mode)
        got = scorer.score(list(pictures), TEXTS[:3]).scores
        in_torch = by_model(model, trained, mode=mode)(questions)
        assert got == pytest.approx(np.array(in_torch), abs=1e-5)
