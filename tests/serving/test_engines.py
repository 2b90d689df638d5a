"""Other bundles and engines on the real server: FP16, denoising, a fed adapter, matrix mode.

The server here has no ONNX Runtime backend. A repository that is made for one is served with a
stand-in for the backend alone: the graphs run in Python, everything else is as it was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import feed_adapter
from bundles import (
    CALIBRATION,
    MATRIX_CALIBRATION,
    RESOLUTION,
    closed_form,
    make_bundle,
    probability,
)
from client import PROTOCOLS, Client, ask_json
from fragile_bundles import BLACK, WHITE, make_fragile_bundle
from inputs import UNSCORED, encode
from PIL import Image
from server import Server

from dsd_trt import Bundle, Scorer
from dsd_trt.batching import batch_sizes
from dsd_trt.bundle.folder import read_bundle, write_bundle
from dsd_trt.commands.main import main
from dsd_trt.engines.triton import repository as repository_module
from dsd_trt.engines.triton.repository import write_repository

BACKEND = """
import pathlib
import onnxruntime
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        (path,) = pathlib.Path(__file__).parent.glob("*.onnx")
        self.session = onnxruntime.InferenceSession(path)

    def execute(self, requests):
        return [pb_utils.InferenceResponse(self.run(request)) for request in requests]

    def run(self, request):
        names = [it.name for it in self.session.get_inputs()]
        feeds = {it: pb_utils.get_input_tensor_by_name(request, it).as_numpy() for it in names}
        names = request.requested_output_names()
        return list(map(pb_utils.Tensor, names, self.session.run(names, feeds)))
"""

TEXTS = ["a red circle", "blue dog", "green"]
PIXELS = np.random.default_rng(8).integers(0, 256, (3, RESOLUTION, RESOLUTION, 3), np.uint8)
IMAGES = [encode(pixels) for pixels in PIXELS]


def replace_backend(repository: Path) -> int:
    """Put the stand-in where the ONNX Runtime backend is asked for."""
    replaced = 0
    for path in repository.glob("*/config.pbtxt"):
        lines = path.read_text("utf-8").splitlines()
        if 'backend: "onnxruntime"' in lines:
            kept = [it for it in lines if not it.startswith(("backend", "default_model_filename"))]
            path.write_text("\n".join([*kept, 'backend: "python"']), encoding="utf-8")
            (path.parent / "1" / "model.py").write_text(BACKEND)
            replaced += 1
    return replaced


def answers(
    bundle: Bundle, scratch: Path, engine: Any, mode: Any = "auto"
) -> Iterator[dict[str, Any]]:
    """What `dsd_score` says over each protocol."""
    written = write_repository(bundle, scratch / "models", engine, max_batch_size=8, mode=mode)
    repository = written.folder
    assert replace_backend(repository) == (3 if engine == "onnxruntime" else 0)
    server = Server(repository, scratch)
    try:
        for protocol in PROTOCOLS:
            with Client(server, protocol) as client:
                yield client("dsd_score", {"images": [*IMAGES, b"bad"], "texts": TEXTS})
    finally:
        server.stop()


def test_half_precision_and_the_denoising_error_on_another_backend(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", precision="fp16", score="attention+denoising")
    expected = Scorer.load(bundle.folder, engine="onnxruntime").score(IMAGES, TEXTS)
    for answer in answers(bundle, tmp_path, "onnxruntime"):
        for name in ("scores", "probabilities"):
            np.testing.assert_allclose(answer[name][:3], getattr(expected, name), atol=1e-5, rtol=0)
        assert (answer["scores"][3] == UNSCORED).all()
        assert answer["image_errors"][3]


def test_an_adapter_that_is_fed_on_the_lean_runtime(tmp_path: Path) -> None:
    adapter = np.array([0.5, -0.75, 0.9], np.float32)
    bundle = feed_adapter(make_bundle(tmp_path / "bundle"), adapter)
    expected = [[adapter.sum() * closed_form(it, text) for text in TEXTS] for it in PIXELS]
    for answer in answers(bundle, tmp_path, "python"):
        np.testing.assert_allclose(answer["scores"][:3], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "precision", "at_once"),
    [
        ("python", "fp32", "in blocks"),
        ("onnxruntime", "fp16", "whole"),
        pytest.param("python", "fp32", "whole", marks=pytest.mark.slow),
        pytest.param("onnxruntime", "fp16", "in blocks", marks=pytest.mark.slow),
    ],
)
def test_matrix_mode(
    engine: str, precision: Any, at_once: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bundle's images at 3 levels, 9 walks: more than a batch, and than a block of 2."""
    bundle = make_bundle(tmp_path / "bundle", precision=precision, matrix=True)
    expected = Scorer.load(bundle.folder, "onnxruntime", mode="matrix").score(IMAGES, TEXTS)
    if at_once == "in blocks":
        sizes = replace(batch_sizes(bundle.manifest, 1024), matrix=(2, 2))
        monkeypatch.setattr(repository_module, "batch_sizes", lambda *_: sizes)
    for answer in answers(bundle, tmp_path, engine, "matrix"):
        for name in ("scores", "probabilities"):
            np.testing.assert_allclose(answer[name][:3], getattr(expected, name), atol=1e-5, rtol=0)
        if precision == "fp32":
            by_hand = [[closed_form(it, text, mode="matrix") for text in TEXTS] for it in PIXELS]
            np.testing.assert_allclose(answer["scores"][:3], by_hand, atol=1e-5)
            sigmoid = probability(by_hand[1][2], MATRIX_CALIBRATION)
            assert answer["probabilities"][1, 2] == pytest.approx(sigmoid, abs=1e-5)
        assert (answer["scores"][3] == UNSCORED).all()


def test_a_bundle_without_a_fit_has_no_probability(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In strict JSON too, with the warning in the server's log; an empty text costs itself."""
    bundle = make_bundle(tmp_path / "bundle")
    bundle = write_bundle(bundle.folder, replace(bundle.manifest, calibration=None))
    write_repository(bundle, tmp_path / "models", "python", max_batch_size=8)
    assert "no match probabilities" in caplog.text
    server = Server(tmp_path / "models", tmp_path)
    texts = ["a red circle", "", "blue dog", "  "]
    try:
        status, told = ask_json(server, "dsd_score", {"images": IMAGES[:1], "texts": texts})
        said = server.log.read_text()
    finally:
        server.stop()
    assert status == 200
    outputs = {it["name"]: it["data"] for it in told["outputs"]}
    known = [closed_form(PIXELS[0], text) for text in texts[::2]]
    expected = [known[0], UNSCORED, known[1], UNSCORED]
    assert outputs["scores"] == pytest.approx(expected, abs=1e-5)
    assert outputs["probabilities"] == [UNSCORED] * 4
    assert outputs["image_errors"] == [""]
    no_words = "a text has no words to score: "
    assert outputs["text_errors"] == ["", f"{no_words}''", "", f"{no_words}'  '"]
    assert "dsd_score: no match probabilities" in said
    assert "dsd-trt calibrate" in said


def test_a_fit_to_labelled_pairs_is_served(tmp_path: Path) -> None:
    """With `dsd-trt calibrate`, on labels that scores follow: the probabilities are the fit's."""
    bundle = make_bundle(tmp_path / "bundle")
    rows = ["image,text,label"]
    for number, grey in enumerate(range(0, 240, 6)):
        Image.new("RGB", (RESOLUTION, RESOLUTION), (grey, 40, 90)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,a red circle,{int((number + number % 3) >= 20)}")
    (tmp_path / "labelled.csv").write_text("\n".join(rows))
    command = ["calibrate", str(bundle.folder), "--data", str(tmp_path / "labelled.csv")]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--engine", "onnxruntime"])
    assert not ended.value.code
    bundle = read_bundle(bundle.folder)
    fitted = bundle.manifest.calibration
    assert fitted is not None
    assert fitted.a != pytest.approx(CALIBRATION.a)
    expected = Scorer.load(bundle.folder, engine="onnxruntime").score(IMAGES, TEXTS)
    by_hand = [[probability(closed_form(it, text), fitted) for text in TEXTS] for it in PIXELS]
    np.testing.assert_allclose(expected.probabilities, by_hand, atol=1e-4)
    for answer in answers(bundle, tmp_path, "python"):
        for name in ("scores", "probabilities"):
            np.testing.assert_allclose(answer[name][:3], getattr(expected, name), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_what_is_not_finite_costs_its_image_text_or_pair_alone(tmp_path: Path, mode: Any) -> None:
    bundle = make_fragile_bundle(tmp_path / "bundle", matrix=True)
    models = tmp_path / "models"
    write_repository(bundle, models, "python", max_batch_size=8, mode=mode)
    server = Server(models, tmp_path)
    images = [encode(pixels) for pixels in (PIXELS[0], WHITE, BLACK)]
    texts = ["a red circle", "blue dog", "a dog"]
    try:
        for _ in range(2):  # what has no state is not taken from the cache as if it had
            status, told = ask_json(server, "dsd_score", {"images": images, "texts": texts})
            assert status == 200
            outputs = {it["name"]: it["data"] for it in told["outputs"]}
            known = [closed_form(PIXELS[0], text, mode=mode) for text in texts[::2]]
            dark = closed_form(BLACK, texts[0], mode=mode)
            expected = [known[0], UNSCORED, known[1], *[UNSCORED] * 3, dark, *[UNSCORED] * 2]
            assert outputs["scores"] == pytest.approx(expected, abs=1e-5)
            lost = [score == UNSCORED for score in expected]
            assert [value == UNSCORED for value in outputs["probabilities"]] == lost
            assert outputs["text_errors"] == ["", "dsd_text_encoder gave NaN or infinity", ""]
            assert outputs["image_errors"] == [
                "",
                "dsd_image_encoder gave NaN or infinity",
                f"dsd_{mode}_scorer gave NaN or infinity with texts [2]",
            ]
        if mode == "pair":
            top_k = np.array([3], np.int32)
            status, told = ask_json(
                server, "dsd_rank_texts", {"images": images, "texts": texts, "top_k": top_k}
            )
            assert status == 200
            ranked = {it["name"]: it["data"] for it in told["outputs"]}
            order = [0, 2] if known[0] > known[1] else [2, 0]
            assert ranked["indices"] == [*order, -1, *[-1] * 3, 0, *[-1] * 2]
            expected = [*sorted(known)[::-1], *[UNSCORED] * 4, dark, *[UNSCORED] * 2]
            assert ranked["scores"] == pytest.approx(expected, abs=1e-5)
            assert ranked["image_errors"] == outputs["image_errors"]
            assert ranked["text_errors"] == outputs["text_errors"]
        status, told = ask_json(server, "dsd_image_encoder", {"pixels": np.stack([BLACK, WHITE])})
        assert (status, told["error"]) == (
            400,
            "dsd_image_encoder: latent has NaN or infinity in rows [1]",
        )
        if mode == "matrix":
            return
        latent = np.full((2, 3, 2, 2), 0.5, np.float32)
        latent[0, 1, 1, 1] = np.nan
        feeds = {
            "latent": latent,
            "level": np.zeros((2, 1), np.int32),
            "text_states": np.ones((2, 77, 4), np.float32),
            "token_mask": np.ones((2, 77), np.float32),
        }
        status, told = ask_json(server, "dsd_pair_scorer", feeds)
        assert status == 400
        assert told["error"] == "dsd_pair_scorer: latent has NaN or infinity in rows [0]"
        latent[0, 1, 1, 1] = 0.5
        assert ask_json(server, "dsd_pair_scorer", feeds)[0] == 200
    finally:
        server.stop()
