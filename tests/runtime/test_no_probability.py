"""Scores without a fitted match probability: NaN, null or empty, and one warning with a remedy."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from bundles import FRACTIONS, MATRIX_CALIBRATION, RESOLUTION, make_bundle, probability
from in_process import Run
from numpy.typing import NDArray
from PIL import Image

from dsd_trt import Bundle, InputError, Scorer, write_bundle
from dsd_trt.bundle.manifest import MANIFEST_NAME, Calibration, Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.probability import card_rows, why_no_probability, with_card_rows

pytest_plugins = ("in_process",)

TEXTS = ["a red circle", "dog", "a blue square"]
IDENTITY = Calibration(1.0, 0.0)  # what older exports wrote where nothing was fitted
REMEDY = "dsd-trt calibrate"
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def images() -> list[Pixels]:
    generator = np.random.default_rng(7)
    return list(generator.integers(0, 256, (4, RESOLUTION, RESOLUTION, 3)).astype(np.uint8))


def calibrated(
    folder: Path, pair: Calibration | None, matrix: Calibration | None = MATRIX_CALIBRATION
) -> Bundle:
    """A bundle of both modes with these calibrations."""
    manifest = make_bundle(folder, matrix=True).manifest
    assert manifest.matrix is not None
    of_matrix = replace(manifest.matrix, calibration=matrix)
    return write_bundle(folder, replace(manifest, calibration=pair, matrix=of_matrix))


@pytest.fixture(scope="module", params=["null", "older"])
def unfitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    none = None if request.param == "null" else IDENTITY
    return calibrated(tmp_path_factory.mktemp("unfitted"), none)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]


def test_every_result_has_nan_and_one_warning_is_logged(
    unfitted: Bundle, images: list[Pixels], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Scorer(unfitted, "onnxruntime")
    assert warnings_of(caplog) == []
    for _ in range(2):
        matrix = scorer.score(images, TEXTS)
        searched = scorer.score(images, TEXTS, top_k=1)
        pairs = scorer.score_pairs(zip(images, TEXTS, strict=False))
        ranked = scorer.rank(TEXTS[0], images)
        pruned = scorer.rank(TEXTS[0], images, 2, prune=True)
    assert np.isfinite(matrix.scores).all()
    assert np.isfinite(pairs.scores).all()
    for it in (matrix, searched, pairs):
        assert it.probabilities.dtype == np.float32
        assert it.probabilities.shape == it.scores.shape
        assert np.isnan(it.probabilities).all()
    assert [it.index for it in ranked] == np.argsort(-matrix.scores[:, 0]).tolist()
    assert {it.index for it in pruned} == {it.index for it in ranked[:2]}
    assert all(np.isnan(it.probability) for it in (*ranked, *pruned))
    assert np.isnan(scorer.probability(matrix.scores)).all()
    assert scorer.calibration() is None
    (warning,) = warnings_of(caplog)
    assert REMEDY in warning
    assert str(unfitted.folder) in warning
    assert warning == scorer.why_no_probability()


@pytest.mark.parametrize("levels", [[0.2], FRACTIONS[:2]])
def test_fewer_levels_have_none(
    bundle: Bundle, images: list[Pixels], levels: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Scorer(bundle, "onnxruntime")

    # An iterator can be read once: the levels and the warning are of the same reading.
    def once() -> Any:
        return iter(levels)

    assert np.isnan(scorer.score(images, TEXTS, once()).probabilities).all()
    assert np.isnan(scorer.score_pairs([(images[0], "dog")], once()).probabilities).all()
    assert np.isnan(scorer.rank("dog", images, levels=once())[0].probability)
    assert np.isnan(scorer.rank("dog", images, 1, once(), prune=True)[0].probability)
    (warning,) = warnings_of(caplog)
    assert "0.2, 0.4, 0.8" in warning
    caplog.clear()
    every = scorer.score(images, TEXTS, FRACTIONS[::-1] * 2)  # all of them, in any order
    assert np.isfinite(every.probabilities).all()
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_each_mode_has_its_own(
    tmp_path: Path, images: list[Pixels], mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    fitted = Calibration(5.0, -1.5)
    other = calibrated(
        tmp_path, fitted if mode == "pair" else None, fitted if mode == "matrix" else IDENTITY
    )
    matrix = Scorer(other, "onnxruntime", mode=mode).score(images, TEXTS)
    expected = np.vectorize(probability)(matrix.scores, fitted)
    np.testing.assert_allclose(matrix.probabilities, expected, atol=1e-6)
    assert warnings_of(caplog) == []
    unlike: Mode = "matrix" if mode == "pair" else "pair"
    matrix = Scorer(other, "onnxruntime", mode=unlike).score(images, TEXTS)
    assert np.isnan(matrix.probabilities).all()
    (warning,) = warnings_of(caplog)
    assert f"in {unlike} mode" in warning
    assert f"--mode {unlike}" in warning


def test_scores_that_are_fitted_stay_without_a_warning(
    bundle: Bundle, images: list[Pixels], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Scorer(bundle, "onnxruntime")
    matrix = scorer.score(images, TEXTS)
    assert np.isfinite(matrix.probabilities).all()
    assert scorer.calibration() == bundle.manifest.calibration
    assert scorer.why_no_probability() == ""
    np.testing.assert_array_equal(scorer.probability(matrix.scores), matrix.probabilities)
    assert np.isnan(scorer.probability(matrix.scores, [0.2])).all()
    assert len(warnings_of(caplog)) == 1
    wrongs: list[Any] = ["x", {}, [["a"]]]
    for wrong in wrongs:
        with pytest.raises(InputError, match="scores must be numbers"):
            scorer.probability(wrong)
    with pytest.raises(InputError, match="no noise level"):
        scorer.probability(matrix.scores, [0.3])


def test_bundle_json_says_null(tmp_path: Path) -> None:
    bundle = calibrated(tmp_path, None, None)
    plain = json.loads((tmp_path / MANIFEST_NAME).read_text("utf-8"))
    assert plain["calibration"] is None
    assert plain["matrix"]["calibration"] is None
    again = Manifest.from_json((tmp_path / MANIFEST_NAME).read_text("utf-8"))
    assert again == bundle.manifest
    assert again.calibration_of("pair") is again.calibration_of("matrix") is None


@pytest.fixture
def score(dsd_trt: Callable[..., Run], images: list[Pixels], tmp_path: Path) -> Callable[..., Run]:
    """`dsd-trt score` at one of three levels, in a folder with images, texts and pairs."""
    for place, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    rows = [f"{place}.png,{text}\n" for place in range(4) for text in TEXTS[:2]]
    (tmp_path / "pairs.csv").write_text("image,text\n" + "".join(rows))
    return lambda *arguments: dsd_trt("score", *arguments, "--levels", "0.4")


GRID = ("0.png", "1.png", "2.png", "3.png", "texts.txt")


@pytest.mark.parametrize("inputs", [GRID, ("--pairs", "pairs.csv"), (*GRID, "--top-k", "2")])
def test_every_format_leaves_it_empty(
    score: Callable[..., Run], tmp_path: Path, inputs: tuple[str, ...]
) -> None:
    lines = score(*inputs, "-f", "jsonl")
    assert lines.code == 0
    assert lines.err.count("warning:") == 1
    assert "no match probabilities" in lines.err
    records = [json.loads(line) for line in lines.out.splitlines()]
    assert records
    assert all(record["probability"] is None and record["score"] > 0 for record in records)
    assert json.loads(score(*inputs, "-f", "json").out) == records
    rows = list(csv.DictReader(io.StringIO(score(*inputs, "-f", "csv").out)))
    assert [row["probability"] for row in rows] == [""] * len(records)
    assert [float(row["score"]) for row in rows] == [record["score"] for record in records]
    assert score(*inputs, "-f", "parquet", "-o", "scores.parquet").code == 0
    column = parquet.read_table(tmp_path / "scores.parquet").column("probability")
    assert column.null_count == len(records)
    table = score(*inputs).out
    assert "nan" not in table
    assert "Prob." not in table
    if "--top-k" in inputs:
        of_image = [record["score"] for record in records if record["image"] == "0.png"]
        assert of_image == sorted(of_image, reverse=True)


def test_a_model_card_says_what_the_bundle_has(tmp_path: Path) -> None:
    manifest = calibrated(tmp_path, Calibration(5.0, -1.5), None).manifest
    rows = card_rows(manifest)
    pair, matrix = rows.splitlines()
    assert "a = 5" in pair
    assert "b = -1.5" in pair
    assert REMEDY in matrix
    card = f"# A bundle\n\n| | |\n|---|---|\n{rows}| counted tokens | words |\n\nMore.\n"
    assert with_card_rows(card, manifest) == card
    fitted = replace(manifest, calibration=None, matrix=None)
    expected = card.replace(rows, card_rows(fitted))
    assert with_card_rows(card, fitted) == expected
    assert with_card_rows("# Older\n", fitted) == "# Older\n"


def test_the_remedy_can_be_pasted(tmp_path: Path) -> None:
    manifest = replace(make_bundle(tmp_path).manifest, calibration=None)
    assert "calibrate 'my scorer' --data" in why_no_probability(manifest, "pair", None, "my scorer")


def test_rankings_of_batches_have_nan(
    unfitted: Bundle, images: list[Pixels], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Scorer(unfitted, "onnxruntime")
    of_texts: Any = scorer.rank(TEXTS, images)
    of_images: Any = scorer.rank_texts(images, TEXTS, 2, prune=True)
    every = [it for found in (*of_texts, *of_images) for it in found]
    assert every
    assert all(np.isnan(it.probability) and it.score > 0 for it in every)
    assert len(warnings_of(caplog)) == 1
