"""The score on one page: it is what the runtime computes, and it does stay on one page."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from dsd_trt import Scorer

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "score_by_hand.py"
IMAGES = [str(EXAMPLES / "images" / f"{name}.png") for name in ("lone-star", "circle-and-square")]
TEXTS = ["a large yellow star", "a red circle to the left of a blue square"]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load(engine="onnxruntime")


def test_it_computes_what_the_embedded_bundle_scores(scorer: Scorer) -> None:
    score = runpy.run_path(str(SCRIPT))["score"]
    by_hand = np.array([[score(image, text) for text in TEXTS] for image in IMAGES])
    expected = scorer.score(IMAGES, TEXTS).scores
    assert expected.std() > 1e-3  # or agreement would mean nothing
    assert np.abs(by_hand - expected).max() < 1e-5


def test_it_prints_the_score_of_its_arguments(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), IMAGES[1], TEXTS[1]])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert float(printed) == pytest.approx(
        scorer.score_pairs([(IMAGES[1], TEXTS[1])]).scores[0], abs=6e-5
    )


def test_it_is_one_page_of_pytorch_and_diffusers() -> None:
    source = SCRIPT.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 80
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    packages = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert packages == {"torch", "diffusers", "transformers", "safetensors", "numpy", "PIL"}
