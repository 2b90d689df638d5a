"""A bundle has the adapter's match probabilities only for the score that they were fitted to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import LAYERS
from exported import Exported

from dsd_trt import Manifest
from dsd_trt.bundle.manifest import Calibration
from dsd_trt.bundle.probability import MOST_SHIFT
from dsd_trt.export.adapt import replace_adapter
from dsd_trt.export.calibration import without_shifted
from dsd_trt.export.recipe import Recipe
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.scoring.adapter import Adapter

pytest_plugins = ("exported",)

PAIR, MATRIX = Calibration(12.0, -3.0), Calibration(5.0, -1.0)
REMEDY = "dsd-trt calibrate BUNDLE"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, adapter_folder: Path) -> Callable[..., Path]:
    """Write an adapter of both modes, fitted at 0.2 and 0.8, with changes."""
    adapter = replace(Adapter.load(adapter_folder), mode="both", matrix_a=5.0, matrix_b=-1.0)

    def write(**changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        replace(adapter, **changes).save(folder)
        return folder

    return write


def described(checkpoint: Path, adapter: Path | None, **settings: Any) -> Manifest:
    """The manifest of an export, without exporting."""
    given = {"levels": (0.2, 0.8), "matrix": True, **settings}
    return Recipe.read(ExportSettings(model=str(checkpoint), adapter=adapter, **given)).manifest


def of_modes(manifest: Manifest) -> tuple[Calibration | None, Calibration | None]:
    return manifest.calibration_of("pair"), manifest.calibration_of("matrix")


def test_the_score_that_was_fitted_keeps_its_calibrations(
    checkpoint_folder: Path, both: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    adapter = both()
    for same in ({}, {"levels": (0.8, 0.2)}, {"levels": None}, {"score_layers": range(LAYERS)}):
        assert of_modes(described(checkpoint_folder, adapter, **same)) == (PAIR, MATRIX), same
    of_pair = described(checkpoint_folder, adapter, matrix=False)
    assert of_modes(of_pair) == (PAIR, None)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"levels": (0.2,)}, "the levels 0.2, 0.8, not 0.2"),
        ({"levels": (0.2, 0.4, 0.8)}, "the levels 0.2, 0.8, not 0.2, 0.4, 0.8"),
        ({"score_layers": "last:1"}, f"all {LAYERS} layers, not 1"),
        ({"resize": "bicubic-stretch-through-224"}, "images resized by bicubic-stretch, not"),
        ({"token_mask": "words"}, "the tokens words_eos, not words"),
        ({"noise_seed": 1}, "the noise of seed 0, not 1"),
        ({"levels": (0.4,), "noise_seed": 1}, "the levels 0.2, 0.8, not 0.4, and to the noise"),
    ],
    ids=str,
)
def test_another_score_has_none(
    checkpoint_folder: Path,
    both: Callable[..., Path],
    settings: Any,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manifest = described(checkpoint_folder, both(), **settings)
    assert manifest.calibration is None
    assert of_modes(manifest) == (None, None)
    for mode, said in zip(("pair", "matrix"), caplog.messages, strict=True):
        assert f"in {mode} mode" in said
        assert why in said
        assert f"{REMEDY} --mode {mode} --data" in said


@pytest.mark.parametrize(
    ("changes", "expected", "why"),
    [
        ({"mode": "pair"}, (PAIR, None), "trained for pair mode alone"),
        ({"mode": "matrix"}, (None, MATRIX), "trained for matrix mode alone"),
        ({"a": 1.0, "b": 0.0}, (None, MATRIX), "the adapter has none"),
        ({"matrix_a": 1.0, "matrix_b": 0.0}, (PAIR, None), "the adapter has none"),
    ],
    ids=str,
)
def test_a_mode_has_only_what_was_fitted_in_it(
    checkpoint_folder: Path,
    both: Callable[..., Path],
    changes: Any,
    expected: tuple[Calibration | None, Calibration | None],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert of_modes(described(checkpoint_folder, both(**changes))) == expected
    (said,) = caplog.messages
    assert why in said


def test_adapters_that_do_not_tell_have_none(
    checkpoint_folder: Path, both: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    unknown = both(levels=())  # as imported ones, which no levels are known of
    assert of_modes(described(checkpoint_folder, unknown)) == (None, None)
    assert of_modes(described(checkpoint_folder, None)) == (None, None)
    assert "there is no few-shot adapter" in caplog.messages[-1]
    seeded = both(training={"noise_seed": 3})
    assert of_modes(described(checkpoint_folder, seeded)) == (None, None)
    assert of_modes(described(checkpoint_folder, seeded, noise_seed=3)) == (PAIR, MATRIX)


def test_averaged_queries_are_another_score(
    checkpoint_folder: Path, both: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    manifest = described(checkpoint_folder, both(), query_pool=2)
    assert of_modes(manifest) == (PAIR, None)
    assert "squares of 2 x 2" in caplog.text


def test_rounding_that_moves_probabilities_costs_them(
    checkpoint_folder: Path, both: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    manifest = described(checkpoint_folder, both(), precision="fp16")
    most = 4 * MOST_SHIFT / PAIR.a  # the steepest slope of sigmoid(a f + b) is a / 4
    f = np.linspace(0, 1, 100_001)

    def sigmoid(scores: Any) -> Any:
        return 1 / (1 + np.exp(-(PAIR.a * scores + PAIR.b)))

    assert np.abs(sigmoid(f + most) - sigmoid(f)).max() == pytest.approx(MOST_SHIFT, rel=0.05)

    def runs(pair: float, matrix: float) -> dict[str, Any]:
        figures = {"spearman": 1.0, "top1": 1.0}
        small = {"max_difference": 1e-6, **figures}
        large = [{"max_difference": it, **figures} for it in (pair, matrix)]
        return {
            "runs": [
                {"score": small, "matrix": small},
                dict(zip(("score", "matrix"), large, strict=True)),
            ]
        }

    for pair, matrix, expected in (
        (0.99 * most, most, (PAIR, MATRIX)),
        (1.01 * most, most, (None, MATRIX)),
        (0, 3 * most, (PAIR, None)),
    ):
        rounded = without_shifted(replace(manifest, parity=runs(pair, matrix)))
        assert of_modes(rounded) == expected
    assert "fp16 moves scores by up to" in caplog.text
    assert of_modes(without_shifted(manifest)) == (PAIR, MATRIX)  # nothing was measured
    alone = replace(manifest, matrix=None, parity={"runs": [{"score": {"max_difference": 9.0}}]})
    assert without_shifted(alone).calibration is None


def test_the_model_card_says_what_was_exported(exported_fp32: Exported) -> None:
    card = (exported_fp32.bundle.folder / "MODEL_CARD.md").read_text("utf-8")
    assert "| match probability, pair mode | sigmoid(a f + b), a = 12, b = -3 |" in card
    assert "| match probability, matrix mode | sigmoid(a f + b), a = 5, b = -1 |" in card


def test_adapt_keeps_only_what_fits_the_bundle(
    fed_fp32: Any, adapter_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fed_fp32.manifest.calibration == PAIR
    adapter = Adapter.load(adapter_folder)
    for changes, expected in (
        ({"a": 7.0}, Calibration(7.0, -3.0)),
        ({"training": {"noise_seed": 1}}, None),
        ({"levels": ()}, None),
        ({"a": 1.0, "b": 0.0}, None),
    ):
        caplog.clear()
        replace(adapter, **changes).save(tmp_path / "other")
        adapted = replace_adapter(fed_fp32, tmp_path / "other", tmp_path / "adapted", force=True)
        assert adapted.manifest.calibration == expected
        assert (REMEDY in caplog.text) == (expected is None)
        card = (tmp_path / "adapted" / "MODEL_CARD.md").read_text("utf-8")
        (row,) = re.findall(r"\| match probability \| (.*) \|", card)
        assert ("a = 7" in row) if expected else row.startswith("none")
