"""The guard of BF16: scores that keep their order, shown; others refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from backends import OpenedBy, open_engine, opened_by
from bundles import make_bundle
from numpy.typing import NDArray
from PIL import Image
from self_checked import add_self_check, known_tensors

import dsd_trt.bfloat16 as bfloat16
from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.folder import bundle_folder, read_bundle
from dsd_trt.engine import EngineDescription
from dsd_trt.errors import EngineError
from dsd_trt.index.writer import update_index
from dsd_trt.pipeline import Pipeline

HERE = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Rounded:
    """The graph in FP32, its scores rounded to so many binary places."""

    def __init__(self, path: Path, graph: Any, places: int) -> None:
        self._engine, self._places = open_engine(path, graph, "openvino"), places
        self.description = EngineDescription("rounded", "nowhere", f"{places} places")

    def run(self, feeds: Any) -> dict[str, NDArray[Any]]:
        outputs = self._engine.run(feeds)
        if "score" in outputs:
            step = 2.0**-self._places
            outputs["score"] = (np.round(outputs["score"] / step) * step).astype(np.float32)
        return outputs

    def close(self) -> None:
        self._engine.close()


@pytest.fixture(scope="module")
def shapes() -> Bundle:
    return read_bundle(bundle_folder(None))


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; and 64 pairs at one level are compared, as of a large model."""
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path))
    monkeypatch.setattr(bfloat16, "_LARGE_TEXT_WIDTH", 0)
    return tmp_path


def rounded(bundle: Bundle, places: int) -> Pipeline:
    return Pipeline(bundle, backend(partial(Rounded, places=places)), 1024, self_check=False)


def backend(function: Any) -> OpenedBy:
    return opened_by(function, like="openvino")


def test_fine_rounding_passes_and_is_told(shapes: Bundle, fresh: Path) -> None:
    described = bfloat16.guarded(shapes, "pair", rounded(shapes, 20), 1024)
    assert described.precision.startswith("20 places (Spearman against fp32: ")
    told = float(described.precision.rpartition(" ")[2].removesuffix(")"))
    assert bfloat16.MIN_SPEARMAN <= told <= 1


def test_coarse_rounding_is_refused_with_what_to_do(shapes: Bundle, fresh: Path) -> None:
    with pytest.raises(EngineError, match=r"keep their order to 0\.\d+ only.*--engine openvino"):
        bfloat16.guarded(shapes, "pair", rounded(shapes, 7), 1024)


def test_it_is_compared_once_on_a_machine(
    shapes: Bundle, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[float] = []

    def compare(*_: Any) -> float:
        counted.append(0.99995)
        return counted[-1]

    monkeypatch.setattr(bfloat16, "_compare", compare)
    pipeline = rounded(shapes, 20)
    for _ in range(2):
        assert "0.999950" in bfloat16.guarded(shapes, "pair", pipeline, 1024).precision
    assert len(counted) == 1
    bfloat16.guarded(shapes, "pair", rounded(shapes, 19), 1024)  # another engine
    assert len(counted) == 2
    encoder = shapes.manifest.graphs["image_encoder"].file
    entry = replace(shapes.manifest.files[encoder], sha256="0" * 64)
    other = replace(shapes.manifest, files={**shapes.manifest.files, encoder: entry})
    bfloat16.guarded(replace(shapes, manifest=other), "pair", pipeline, 1024)
    assert len(counted) == 3
    method = replace(shapes.manifest.method, token_mask="all")  # of the same graphs
    other = replace(shapes.manifest, method=method)
    bfloat16.guarded(replace(shapes, manifest=other), "pair", pipeline, 1024)
    assert len(counted) == 4


def test_a_bundle_that_was_compared_compiles_its_image_encoder_alone(
    shapes: Bundle, fresh: Path
) -> None:
    def compiled() -> list[str]:
        opened: list[str] = []

        def open_graph(path: Path, graph: Any) -> Rounded:
            opened.append(path.stem)
            return Rounded(path, graph, 20)

        bfloat16.require_agreement(
            shapes, "pair", Pipeline(shapes, backend(open_graph), 1024), 1024
        )
        return opened

    assert sorted(compiled()) == ["image_encoder", "pair_scorer", "text_encoder"]
    assert compiled() == ["image_encoder"]


def test_without_a_self_check_what_it_is_compared_with_has_none_either(
    tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, "MIN_SPEARMAN", -1.0)
    bundle = make_bundle(tmp_path / "bundle")
    wrong = known_tensors(bundle)["pair_scorer.score"] + np.float32(1)
    bundle = add_self_check(bundle, {"pair_scorer.score": wrong})
    bfloat16.require_agreement(bundle, "pair", rounded(bundle, 20), 1024)


def test_what_is_no_number_is_refused(
    shapes: Bundle, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, "_compare", lambda *_: float("nan"))
    with pytest.raises(EngineError, match="keep their order"):
        bfloat16.guarded(shapes, "pair", rounded(shapes, 20), 1024)


def test_on_this_processor_it_is_guarded_or_refused(
    bundle: Bundle, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, "MIN_SPEARMAN", -1.0)
    if not HERE:
        with pytest.raises(EngineError, match="does not compute in BF16"):
            Scorer(bundle, "openvino-bf16")
        return
    scorer = Scorer(bundle, "openvino-bf16")
    assert scorer.engine.precision.startswith("bf16 (Spearman")
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    texts = ["a red circle", "dog"]
    full = Scorer(bundle, "openvino").score([picture], texts).scores
    assert scorer.score([picture], texts).scores == pytest.approx(full, abs=2e-2)


def test_an_index_is_guarded_as_scoring_is(
    shapes: Bundle, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fresh / "picture.png"
    Image.new("RGB", (64, 64), "red").save(path)
    refused = "keep their order" if HERE else "does not compute in BF16"
    monkeypatch.setattr(bfloat16, "MIN_SPEARMAN", 1.1)
    with pytest.raises(EngineError, match=refused):
        update_index(fresh / "index", [path], engine="openvino-bf16")
    assert not (fresh / "index").exists()
    if HERE:
        monkeypatch.setattr(bfloat16, "MIN_SPEARMAN", -1.0)
        done = update_index(fresh / "index", [path], engine="openvino-bf16")
        assert done.engine is not None
        assert done.engine.precision == "bf16"
