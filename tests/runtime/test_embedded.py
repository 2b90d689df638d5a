"""The embedded model: that it computes what it should, and that it can tell scenes apart.

How well it does on more scenes stands in its MODEL_CARD.md, written by tools/embed_model.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from held_out import figures, grade, write_questions
from numpy.typing import NDArray
from PIL import Image

from dsd_trt import Scorer
from dsd_trt.commands.inputs import read_pairs
from dsd_trt.export.recipe import Recipe
from dsd_trt.export.reference import Reference
from dsd_trt.export.settings import ExportSettings
from dsd_trt.image.preprocess import preprocess
from dsd_trt.lists import OF_LIST
from dsd_trt.pruned_search import ERROR
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.diffusion.place import EMBEDDED, embedded_model_folder, find_place
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.adapter_file import adapter_hash
from dsd_trt.train.shapes.scene import COLOURS, SHAPES

EXAMPLES = Path(__file__).parents[2] / "examples"
PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "images"
FEW = 3  # pairs, each image against every text
OTHER_TEXTS = ["a dog on a beach", "Ein Pferd — 馬 🐎", "circle " * 90]  # the last is cut


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Path, str]]:
    return [(pair.image, pair.text) for pair in read_pairs(EXAMPLES / "pairs.csv")]


@pytest.fixture(scope="module")
def expected(pairs: list[tuple[Path, str]]) -> NDArray[np.float32]:
    """What PyTorch computes at batch 1 for the first images against many kinds of texts."""
    recipe = Recipe.read(ExportSettings(adapter=find_place(EMBEDDED).own_adapter))
    reference, side = Reference(recipe), recipe.checkpoint.resolution
    pixels = np.stack([preprocess(image, side) for image, _ in pairs[:FEW]])
    ids, mask = reference.tokenize([*(text for _, text in pairs[:FEW]), *OTHER_TEXTS])
    return reference.score(reference.encode_images(pixels), reference.encode_texts(ids), mask)


@pytest.mark.parametrize(("engine", "tolerance"), [("onnxruntime", 1e-5), ("openvino", 1e-4)])
def test_it_scores_as_the_pytorch_model_does(
    engine: str, tolerance: float, pairs: list[tuple[Path, str]], expected: NDArray[np.float32]
) -> None:
    texts = [*(text for _, text in pairs[:FEW]), *OTHER_TEXTS]
    scores = Scorer.load(engine=engine).score([image for image, _ in pairs[:FEW]], texts).scores
    assert expected.std() > 1e-3  # or agreement would mean nothing
    assert np.abs(scores - expected).max() < tolerance


def test_a_pair_scores_the_same_alone_in_sevens_and_shuffled(
    engine: str, pairs: list[tuple[Path, str]]
) -> None:
    scorer = Scorer.load(engine=engine)
    seven = pairs[:7]
    together = scorer.score_pairs(seven).scores
    alone = [scorer.score_pairs([pair]).scores[0] for pair in seven]
    order = [4, 2, 6, 0, 5, 3, 1]
    shuffled = scorer.score_pairs([seven[i] for i in order]).scores
    assert np.abs(together - alone).max() < 1e-6
    assert np.abs(together[order] - shuffled).max() < 1e-6


def test_bundle_and_model_belong_together() -> None:
    provenance = Scorer.load(engine="onnxruntime").manifest.provenance
    assert provenance.base_model == EMBEDDED
    assert provenance.weight_hashes == read_checkpoint(EMBEDDED).weight_hashes
    folder = embedded_model_folder() / "adapter"
    adapter = Adapter.load(folder)
    assert adapter.base == provenance.weight_hashes
    assert provenance.adapter_hash == adapter_hash(folder)


def test_its_lists_are_the_adapters_and_enough_for_the_usual_error() -> None:
    manifest = Scorer.load(engine="onnxruntime").manifest
    assert manifest.matrix is not None
    lists = manifest.matrix.lists
    assert lists is not None
    assert lists == Adapter.load(embedded_model_folder() / "adapter").lists
    for measured in (lists.texts["1"], lists.images["1"]):
        assert measured.bound(OF_LIST * ERROR) > -np.inf


def test_a_search_makes_lists_by_itself_and_nothing_else_opens_the_matrix_scorer(
    engine: str, pairs: list[tuple[Path, str]]
) -> None:
    images = [image for image, _ in pairs[:FEW]]
    texts = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    texts += [text for _, text in pairs]
    scorer = Scorer.load(engine=engine)
    full = scorer.score(images, texts)
    assert "matrix_scorer" not in scorer._pipeline._engines
    found = scorer.score(images, texts, top_k=1)
    assert "matrix_scorer" in scorer._pipeline._engines
    winners = np.nanargmax(found.scores, axis=1)
    assert winners.tolist() == full.scores.argmax(axis=1).tolist()
    at = (np.arange(FEW), winners)
    assert np.abs(found.scores[at] - full.scores[at]).max() < 1e-6
    assert found.passes < full.passes / 2


@pytest.mark.slow
def test_scenes_by_another_renderer_are_told_apart(tmp_path: Path) -> None:
    """Chance is 50 % for an image of two and 10 % for a text of ten."""
    pairs, questions = write_questions(tmp_path, count=360, seed=11)
    accuracy = figures(grade(Scorer.load().score_pairs(pairs).scores, questions))
    assert accuracy["image subject"] >= 80
    assert accuracy["image object"] >= 80
    assert accuracy["image predicate"] >= 85
    assert accuracy["R@1 of ten"] >= 80


def test_card_says_what_the_model_is_and_how_to_make_it() -> None:
    card = (embedded_model_folder() / "MODEL_CARD.md").read_text("utf-8")
    assert "demonstration on coloured shapes" in card
    assert "trained by its own generator to be matchable" in card
    assert "dsd-trt pretrain shapes --out DIR --seed" in card
    assert "other renderer" in card
    bundled = Scorer.load(engine="onnxruntime").bundle.path("MODEL_CARD.md").read_text("utf-8")
    assert card.split("---\n", 2)[2].strip() in bundled


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not on this machine")
def test_photographs_can_be_scored_though_it_knows_none() -> None:
    paths = sorted(PHOTOGRAPHS.iterdir())
    scorer = Scorer.load()
    matrix = scorer.score(paths, ["a dog", "a horse"])
    assert matrix.scores.shape == (len(paths), 2)
    assert matrix.errors == ()
    assert np.isfinite(matrix.scores).all()
    for path, row in zip(paths, matrix.scores, strict=True):
        with Image.open(path) as image:
            pixels: NDArray[Any] = np.asarray(image)
        again = scorer.score([pixels], ["a dog", "a horse"]).scores
        assert np.abs(again - row).max() < 1e-6
