"""Bundles that earlier commits wrote are read by today's reader, and score as they did then.

Each folder of `kept_bundles` is the stand-in model's bundle, as `write_bundle` of the commit in its
name wrote it. The JSON file beside it has the scores that its `Scorer` gave on ONNX Runtime.
`demonstration-*.json.gz` are `bundle.json` of exported bundles. Files are added and never changed:
docs/bundle.md promises what they stand for.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_trt import BundleError, Scorer, read_bundle
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.bundle.method import Mode

KEPT = Path(__file__).with_name("kept_bundles")
IMAGES = [str(KEPT / f"image-{number}.png") for number in range(2)]
TEXTS = ["a red circle", "blue square", "dog"]
BEFORE_THE_PROMISE = "2026-11-23-021b6b7"
FOLDERS = sorted(it.name for it in KEPT.iterdir() if it.is_dir() and it.name != BEFORE_THE_PROMISE)
DESCRIPTIONS = sorted(it.name for it in KEPT.glob("*.json.gz"))


def kept_scores(name: str) -> dict[Mode, dict[str, Any]]:
    scores: dict[Mode, dict[str, Any]] = json.loads((KEPT / f"{name}.json").read_text("utf-8"))
    return scores


def test_bundles_of_several_days_are_kept() -> None:
    assert len(FOLDERS) >= 3
    assert {mode for name in FOLDERS for mode in kept_scores(name)} == {"pair", "matrix"}


@pytest.mark.parametrize("name", FOLDERS)
def test_it_scores_as_it_did(name: str, engine: str) -> None:
    for mode, given in kept_scores(name).items():
        with Scorer.load(KEPT / name, engine=engine, mode=mode) as scorer:
            matrix = scorer.score(IMAGES, TEXTS)
        assert matrix.errors == ()
        np.testing.assert_allclose(matrix.scores, given["scores"], atol=1e-5)
        np.testing.assert_allclose(matrix.probabilities, given["probabilities"], atol=1e-4)


@pytest.mark.parametrize("name", FOLDERS)
def test_its_identity_is_the_same(name: str) -> None:
    """Indexes and plans name graphs by this hash: another one would refuse all of them."""
    plain = json.loads((KEPT / name / "bundle.json").read_text("utf-8"))
    for graph, described in plain["graphs"].items():
        content = hashlib.sha256((KEPT / name / described["file"]).read_bytes()).hexdigest()
        expected = hashlib.sha256(content.encode()).hexdigest()  # no file of weights
        assert read_bundle(KEPT / name).manifest.graph_hash(graph) == expected


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions_of_exported_bundles_are_read(name: str) -> None:
    text = gzip.decompress((KEPT / name).read_bytes()).decode()
    plain, manifest = json.loads(text), Manifest.from_json(text)
    assert (
        list(manifest.method.noise_levels.fractions) == plain["method"]["noise_levels"]["fractions"]
    )
    assert manifest.weight_files == ("weights.data",)
    calibration = manifest.calibration_of("pair")
    assert calibration is not None
    assert (calibration.a, calibration.b) == (plain["calibration"]["a"], plain["calibration"]["b"])
    hashes = "".join(plain["files"][it]["sha256"] for it in ("pair_scorer.onnx", "weights.data"))
    assert manifest.graph_hash("pair_scorer") == hashlib.sha256(hashes.encode()).hexdigest()


def test_what_was_written_before_the_promise_is_refused_by_name() -> None:
    with pytest.raises(BundleError, match="field 'matrix' is missing"):
        read_bundle(KEPT / BEFORE_THE_PROMISE)
