"""The guard of BF16: used, and told, where it hardly ever changes the winner; else refused."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import OpenedBy, open_engine, opened_by
from bundles import make_bundle
from numpy.typing import NDArray
from PIL import Image
from processor import BF16
from self_checked import add_self_check, known_tensors

import dsd_trt.bfloat16 as bfloat16
import dsd_trt.engine
from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.bfloat16 import MOST_CHANGES
from dsd_trt.bundle.folder import read_bundle, write_bundle
from dsd_trt.bundle.manifest import Bfloat16, Calibration
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.bundle.probability import MOST_SHIFT, Rounding
from dsd_trt.commands.main import main
from dsd_trt.engine import EngineDescription
from dsd_trt.errors import EngineError
from dsd_trt.index.writer import update_index
from dsd_trt.pipeline import Pipeline


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
    described, rounding = bfloat16.guarded(shapes, "pair", rounded(shapes, 20), 1024)
    assert 2**-22 < rounding.difference < 2**-20
    told = re.fullmatch(
        r"20 places \(changes the winner with probability (\S+) %\)", described.precision
    )
    assert told is not None
    assert 0 <= float(told[1]) / 100 <= 1e-4


def test_coarse_rounding_is_refused_with_what_to_do(shapes: Bundle, fresh: Path) -> None:
    with pytest.raises(
        EngineError, match=r"best with probability \d.* % \(allowed is 0\.5 %\).*--engine openvino"
    ):
        bfloat16.guarded(shapes, "pair", rounded(shapes, 7), 1024)


def test_it_is_compared_once_on_a_machine(
    shapes: Bundle, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Bfloat16] = []

    def compare(*_: Any) -> Bfloat16:
        counted.append(Bfloat16(0.0012, 0.25, "here"))
        return counted[-1]

    monkeypatch.setattr(bfloat16, "compare_bfloat16", compare)
    pipeline = rounded(shapes, 20)
    for _ in range(2):
        described, rounding = bfloat16.guarded(shapes, "pair", pipeline, 1024)
        assert "0.12 %" in described.precision
        assert rounding == Rounding("BF16", 0.25, "openvino")
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


@pytest.mark.parametrize("changes", [0.0012, 0.02])
def test_what_the_export_measured_holds_on_such_a_processor(
    changes: float, shapes: Bundle, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_here: list[str] = []

    def compare(*_: Any) -> Bfloat16:
        measured_here.append("here")
        return Bfloat16(0.0034, 0.5, "here")

    monkeypatch.setattr(bfloat16, "compare_bfloat16", compare)
    engine = "rounded on nowhere, 20 places"
    for place, used in (("elsewhere, bf16", False), (engine, True)):
        exported = replace(shapes.manifest, bfloat16={"pair": Bfloat16(changes, 0.25, place)})
        pipeline = rounded(replace(shapes, manifest=exported), 20)
        measured_here.clear()
        if used and changes > MOST_CHANGES:
            with pytest.raises(EngineError, match=r"probability 2 % \(allowed"):
                bfloat16.guarded(replace(shapes, manifest=exported), "pair", pipeline, 1024)
        else:
            described, _ = bfloat16.guarded(
                replace(shapes, manifest=exported), "pair", pipeline, 1024
            )
            assert ("0.12 %" if used else "0.34 %") in described.precision
        assert bool(measured_here) is not used


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
    monkeypatch.setattr(bfloat16, "MOST_CHANGES", 1.0)
    bundle = make_bundle(tmp_path / "bundle")
    wrong = known_tensors(bundle)["pair_scorer.score"] + np.float32(1)
    bundle = add_self_check(bundle, {"pair_scorer.score": wrong})
    bfloat16.require_agreement(bundle, "pair", rounded(bundle, 20), 1024)


def test_what_is_no_number_is_refused(
    shapes: Bundle, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Bfloat16(np.nan, np.nan, "here")
    monkeypatch.setattr(bfloat16, "compare_bfloat16", lambda *_: nothing)
    with pytest.raises(EngineError, match=r"cannot be said .* not finite.*--engine openvino"):
        bfloat16.guarded(shapes, "pair", rounded(shapes, 20), 1024)


def test_on_this_processor_it_is_guarded_or_refused(
    bundle: Bundle, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, "MOST_CHANGES", 1.0)
    if not BF16:
        with pytest.raises(EngineError, match="does not compute in BF16"):
            Scorer(bundle, "openvino-bf16")
        return
    scorer = Scorer(bundle, "openvino-bf16")
    assert scorer.engine.precision.startswith("bf16 (changes the winner with probability ")
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    texts = ["a red circle", "dog"]
    full = Scorer(bundle, "openvino").score([picture], texts).scores
    assert scorer.score([picture], texts).scores == pytest.approx(full, abs=2e-2)


def test_bf16_that_onednn_must_not_use_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO would report BF16, and refuse each graph with a message about primitives."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    with pytest.raises(EngineError, match="does not compute in BF16 with ONEDNN_MAX_CPU_ISA=avx2"):
        Scorer(bundle, "openvino-bf16")


PLACES = 8
HALF = 2.0 ** -(PLACES + 1)  # the largest error of rounding to so many binary places


@pytest.fixture
def by_hand(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine to name, which rounds scores to few places."""
    monkeypatch.setattr(bfloat16, "MOST_CHANGES", 1.0)
    coarse = replace(backend(partial(Rounded, places=PLACES)), name="openvino-bf16")
    monkeypatch.setitem(dsd_trt.engine.BACKENDS, "openvino-bf16", "test_bfloat16:COARSE")
    monkeypatch.setattr(sys.modules[__name__], "COARSE", coarse, raising=False)
    return "openvino-bf16"


@pytest.mark.parametrize(("share", "kept"), [(0.99, True), (1.3, False)])
def test_a_probability_that_rounding_moves_far_is_none(
    share: float, kept: bool, by_hand: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The slope of sigmoid(a f + b) is at most a / 4."""
    bundle = make_bundle(tmp_path / "bundle")
    a = share * 4 * MOST_SHIFT / HALF
    bundle = write_bundle(
        bundle.folder, replace(bundle.manifest, calibration=Calibration(a, -a / 2))
    )
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    texts = ["a red circle", "dog", "green"]
    full = Scorer(bundle, "openvino").score([picture], texts)
    scorer = Scorer(bundle, by_hand)
    found = scorer.score([picture], texts)
    assert np.abs(found.scores - full.scores).max() <= HALF
    assert np.isfinite(full.probabilities).all()
    if kept:
        assert np.abs(found.probabilities - full.probabilities).max() <= MOST_SHIFT
        assert scorer.why_no_probability() == ""
        return
    assert np.isnan(found.probabilities).all()
    (warning,) = (it.message for it in caplog.records if "no match prob" in it.message)
    assert "no match probabilities in BF16" in warning
    assert "--engine openvino" in warning
    assert warning == scorer.why_no_probability()


def test_what_is_fitted_in_bf16_holds_in_fp32(
    by_hand: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels that scores separate within a narrow range need a steep fit, which is refused."""
    bundle = make_bundle(tmp_path / "bundle")
    lines = ["image,text,label"]
    for number, grey in enumerate(range(100, 140)):
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,a red circle,{int(number >= 20)}")
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(lines))
    before = (bundle.folder / "bundle.json").read_text()
    command = ["calibrate", str(bundle.folder), "--data", str(table), "--engine"]
    with pytest.raises(SystemExit) as ended:
        main([*command, by_hand])
    assert ended.value.code == 2
    assert "fit them in FP32, --engine openvino" in capsys.readouterr().err
    assert (bundle.folder / "bundle.json").read_text() == before
    with pytest.raises(SystemExit) as ended:
        main([*command, "openvino"])
    assert not ended.value.code
    fitted = read_bundle(bundle.folder).manifest.calibration
    assert fitted is not None
    assert abs(fitted.a) > 4 * MOST_SHIFT / HALF


def test_an_index_is_guarded_as_scoring_is(
    shapes: Bundle, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fresh / "picture.png"
    Image.new("RGB", (64, 64), "red").save(path)
    refused = "is best with probability" if BF16 else "does not compute in BF16"
    monkeypatch.setattr(bfloat16, "MOST_CHANGES", -1.0)
    with pytest.raises(EngineError, match=refused):
        update_index(fresh / "index", [path], engine="openvino-bf16")
    assert not (fresh / "index").exists()
    if BF16:
        monkeypatch.setattr(bfloat16, "MOST_CHANGES", 1.0)
        done = update_index(fresh / "index", [path], engine="openvino-bf16")
        assert done.engine is not None
        assert done.engine.precision == "bf16"
