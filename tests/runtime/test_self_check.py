"""A bundle that computes anything else than its reference did is refused when it is opened."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from backends import open_engine, opened_by
from bundles import make_bundle
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from self_checked import add_self_check, change_weight, fit_hash, known_tensors
from torture import Figures, scaled

from dsd_trt import Bundle, BundleError, Scorer
from dsd_trt.bundle.contract import Graph
from dsd_trt.bundle.folder import read_bundle
from dsd_trt.bundle.manifest import MANIFEST_NAME
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.commands.main import main
from dsd_trt.engine import EngineDescription
from dsd_trt.engine.onnxruntime.cpu import CPU
from dsd_trt.engine.self_check import FILE_NAME, tolerance_of
from dsd_trt.errors import EngineError
from dsd_trt.pipeline import Pipeline

GREY = np.full((8, 8, 3), 128, np.uint8)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("score", ["attention", "attention+denoising"])
def test_what_computes_the_closed_form_opens(
    tmp_path: Path, engine: str, precision: Any, score: Any
) -> None:
    bundle = add_self_check(make_bundle(tmp_path, precision=precision, score=score))
    with Scorer(bundle, engine) as scorer:
        assert np.isfinite(scorer.score([GREY], ["red"]).scores).all()


def test_matrix_mode_too(tmp_path: Path, engine: str) -> None:
    bundle = add_self_check(make_bundle(tmp_path, matrix=True))
    Scorer(bundle, engine, mode="matrix").close()


@pytest.mark.parametrize(
    ("graph", "weight", "mode"),
    [
        ("image_encoder", None, "pair"),
        ("text_encoder", "table", "pair"),
        ("pair_scorer", "projection", "pair"),
        ("matrix_scorer", "projection", "matrix"),
    ],
)
def test_weights_whose_hashes_were_made_to_fit_are_refused_with_both_numbers(
    tmp_path: Path, engine: str, graph: str, weight: str | None, mode: Any
) -> None:
    add_self_check(make_bundle(tmp_path, matrix=True))
    if graph == "text_encoder":  # a row that the check's texts have: BOS
        path = tmp_path / "text_encoder.onnx"
        model = onnx.load(path)
        values = numpy_helper.to_array(model.graph.initializer[0]).copy()
        values[1] += 0.5
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "table"))
        onnx.save(model, path)
        fit_hash(tmp_path, path.name)
    else:
        change_weight(tmp_path, graph, weight)
    bundle = read_bundle(tmp_path)  # the hashes fit
    with pytest.raises(EngineError, match=r"self-check of the") as caught:
        Scorer(bundle, engine, mode=mode)
    message = str(caught.value)
    assert graph.replace("_", " ") in message
    assert "--no-self-check" in message
    place, got, expected = _numbers(message)
    known = known_tensors(bundle)[f"{graph}.{place[0]}"]
    assert float(known[tuple(place[1])]) == pytest.approx(expected, rel=1e-5)
    assert abs(got - expected) > 2e-4 * float(np.abs(known).max())
    Scorer(bundle, engine, mode=mode, self_check=False).close()


def _numbers(message: str) -> tuple[tuple[str, list[int]], float, float]:
    """Tensor and place, what was computed and what was expected."""
    words = message.split("scorer: " if "scorer: " in message else "encoder: ")[1]
    where, rest = words.split(" is ", 1)
    got, rest = rest.split(" instead of ")
    name, _, place = where.partition("[")
    return (name, json.loads(f"[{place}")), float(got), float(rest.split(" ")[0])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e-3])
def test_an_engine_that_computes_wrong_is_refused(tmp_path: Path, wrong: float) -> None:
    bundle = add_self_check(make_bundle(tmp_path))
    closed = []

    class Wrong:
        description = EngineDescription("wrong", "CPU", "fp32")

        def __init__(self, path: Path, graph: Graph) -> None:
            self._right = open_engine(path, graph, "onnxruntime")

        def run(self, feeds: Any) -> dict[str, NDArray[Any]]:
            outputs = self._right.run(feeds)
            if "score" in outputs:
                outputs["score"] = outputs["score"] + np.float32(wrong)
            return outputs

        def close(self) -> None:
            closed.append(self)

    pipeline = Pipeline(bundle, opened_by(Wrong), 64)
    with pytest.raises(EngineError, match=r"score\[0\] is \S+ instead of 0\."):
        pipeline.compile()
    assert len(closed) == 1  # the one that was refused


def test_what_is_not_opened_is_not_checked(tmp_path: Path) -> None:
    bundle = add_self_check(make_bundle(tmp_path))
    change_weight(tmp_path, "pair_scorer", "projection")
    pipeline = Pipeline(read_bundle(bundle.folder), CPU, 64)
    assert pipeline.encode_images([GREY]).shape == (1, 3, 2, 2)
    with pytest.raises(EngineError, match="pair scorer"):
        pipeline.compile()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pair_scorer.score": None}, "'pair_scorer.score' is missing"),
        ({"pair_scorer.score": np.zeros((3, 1), np.float32)}, r"float32 \(3, 1\), and not"),
        ({"pair_scorer.score": np.zeros(2, np.float32)}, r"float32 \(2,\), and not"),
        ({"pair_scorer.score": np.zeros(3, np.float16)}, r"float16 \(3,\), and not"),
        ({"pair_scorer.score": np.full(3, np.nan, np.float32)}, "is not finite"),
        ({"image_encoder.pixels": np.zeros((0, 8, 8, 3), np.uint8)}, r"\(0, 8, 8, 3\), and not"),
        ({"of.nothing": np.zeros(3, np.float64)}, "F64"),
    ],
)
def test_a_file_that_does_not_fit_the_graphs_is_the_bundles_fault(
    tmp_path: Path, changes: Any, complaint: str
) -> None:
    bundle = add_self_check(make_bundle(tmp_path), changes)
    with pytest.raises(BundleError, match=rf"self_check\.safetensors.*{complaint}"):
        Scorer(bundle, "onnxruntime")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("tolerance", 0.0, "self_check.tolerance"),
        ("tolerance", 1.0, "self_check.tolerance"),
        ("tolerance", "much", "self_check.tolerance"),
        ("file", "elsewhere", "self_check.file"),
        ("file", 3, "self_check.file"),
        ("more", 3, "self_check.more"),
    ],
)
def test_the_manifests_field_is_checked(
    tmp_path: Path, field: str, value: Any, complaint: str
) -> None:
    add_self_check(make_bundle(tmp_path))
    path = tmp_path / MANIFEST_NAME
    plain = json.loads(path.read_text("utf-8"))
    plain["self_check"][field] = value
    path.write_text(json.dumps(plain), "utf-8")
    with pytest.raises(BundleError, match=complaint):
        read_bundle(tmp_path)


def test_a_cut_file_is_the_bundles_fault(tmp_path: Path) -> None:
    add_self_check(make_bundle(tmp_path))
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-1])
    fit_hash(tmp_path, FILE_NAME)
    with pytest.raises(BundleError, match=r"self_check\.safetensors"):
        Scorer(read_bundle(tmp_path), "onnxruntime")


def test_plans_and_indexes_do_not_depend_on_it(tmp_path: Path) -> None:
    before = make_bundle(tmp_path).manifest
    after = add_self_check(read_bundle(tmp_path)).manifest
    for graph in before.graphs:
        assert after.graph_hash(graph) == before.graph_hash(graph)
    assert after.weight_files == before.weight_files


def test_a_bundle_without_one_opens_and_says_so(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dsd_trt"):
        Scorer(bundle, "onnxruntime").close()
    assert "has no self-check" in caplog.text


@pytest.mark.parametrize(
    ("engine", "precision", "device", "allowed"),
    [
        ("x 1.0", "fp32", "CPU (of some kind)", 2e-4),
        ("x 1.0", "bf16", "CPU", 5e-2),
        ("x 1.0", "bf16 (changes the winner with probability 0.1 %)", "CPU", 5e-2),
        ("tensorrt 10.8", "fp32", "GPU of compute capability 8.9", 1e-2),
        ("triton", "as its graph says", "pair_scorer", 1e-2),
        ("onnxruntime-gpu 1.31.1", "fp32", "NVIDIA H200", 1e-3),  # TF32 is off
        ("onnxruntime 1.32.0", "fp32", "CPU", 2e-4),
    ],
)
def test_engines_of_less_precision_may_differ_more(
    engine: str, precision: str, device: str, allowed: float
) -> None:
    used = EngineDescription(engine, device, precision)
    assert tolerance_of(used, 2e-4) == allowed
    assert tolerance_of(used, 0.2) == 0.2


def test_commands_refuse_and_are_told_not_to_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_self_check(make_bundle(tmp_path / "bundle"))
    change_weight(tmp_path / "bundle", "pair_scorer", "projection")
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    (tmp_path / "texts.txt").write_text("red\n", "utf-8")
    arguments = ["score", str(tmp_path / "grey.png"), str(tmp_path / "texts.txt")]
    arguments += ["--bundle", str(tmp_path / "bundle"), "--engine", "onnxruntime"]
    for options, code in (([], 4), (["--no-self-check"], 0)):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *options])
        assert (ended.value.code or 0) == code
        assert ("self-check of the pair scorer" in capsys.readouterr().err) is bool(code)


def test_the_embedded_bundle_is_refused_with_flipped_bits(tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "shapes"
    shutil.copytree(bundle_folder(None), folder)
    bundle = read_bundle(folder)
    assert bundle.manifest.self_check is not None
    Scorer(bundle, engine).close()
    weights = folder / "weights.data"
    content = bytearray(weights.read_bytes())
    for at in range(3, len(content), 4 * 997):  # an exponent's bit of every thousandth number
        content[at] ^= 0x08
    weights.write_bytes(content)
    fit_hash(folder, weights.name)
    with pytest.raises(EngineError, match="self-check of the"):
        Scorer(read_bundle(folder), engine)


@pytest.mark.torture
def test_flipped_bits_are_refused_or_change_next_to_nothing(
    tmp_path: Path, figures: Figures
) -> None:
    figures.look_for("flipped high bits of weights, hashes made to fit", "wrong")
    folder = Path(shutil.copytree(bundle_folder(None), tmp_path / "shapes"))
    weights, texts = folder / "weights.data", ["a large yellow star", "a red circle", "two squares"]
    right, rng = weights.read_bytes(), np.random.default_rng(7)
    pictures = list(rng.integers(0, 256, (3, 64, 64, 3), np.uint8))
    with Scorer.load(folder, "onnxruntime") as scorer:
        expected = scorer.score(pictures, texts).scores
    worst = 0.0
    for _ in range(scaled(100)):
        at, bit = int(rng.integers(len(right) // 2)) * 2 + 1, int(rng.choice([8, 32, 64, 128]))
        weights.write_bytes(right[:at] + bytes([right[at] ^ bit]) + right[at + 1 :])
        fit_hash(folder, weights.name)
        try:
            with Scorer.load(folder, "onnxruntime") as scorer:
                scores = scorer.score(pictures, texts).scores
        except EngineError:
            figures.ended("refused")
            continue
        change = float(np.abs(scores - expected).max() / np.ptp(expected))
        worst = max(worst, change)
        if not change < 0.01:
            figures.fault("wrong", f"byte {at}, bit {bit}: scores change by {change:.2g}")
        figures.ended("opened")
    figures.measured["largest change of an opened one's scores, of their spread"] = worst


def test_a_tolerance_that_is_wide_enough_lets_through(tmp_path: Path) -> None:
    changed = make_bundle(tmp_path)
    score = known_tensors(changed)["pair_scorer.score"]
    off = score * np.float32(1.01)
    bundle = add_self_check(changed, {"pair_scorer.score": off})
    with pytest.raises(EngineError, match="score"):
        Scorer(bundle, "onnxruntime")
    spec = bundle.manifest.self_check
    assert spec is not None
    wide = replace(
        bundle, manifest=replace(bundle.manifest, self_check=replace(spec, tolerance=0.02))
    )
    Scorer(wide, "onnxruntime").close()


def test_an_output_of_another_size_than_the_inputs_is_refused(tmp_path: Path, engine: str) -> None:
    """Where `bundle.json` gives it a name of its own, the file fits the signature."""
    add_self_check(make_bundle(tmp_path), {"pair_scorer.score": np.full(2, 0.5, np.float32)})
    manifest = tmp_path / MANIFEST_NAME
    plain = json.loads(manifest.read_text("utf-8"))
    plain["graphs"]["pair_scorer"]["outputs"][0]["shape"] = ["M"]
    manifest.write_text(json.dumps(plain), "utf-8")
    with pytest.raises(EngineError, match=r"score is \(3,\), expected \(2,\)"):
        Scorer(read_bundle(tmp_path), engine)
