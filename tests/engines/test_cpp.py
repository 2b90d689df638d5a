"""The C++ scorer against Python's, on the same bundle, images and texts."""

from __future__ import annotations

import copy
import csv
import ctypes
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from bundles import FRACTIONS, give_form, take_weights_from
from cpp import ROOT, CppError, CppScorer, build, clip_bundle
from exported import Exported
from hub_cache import COMMIT, LEADING_OUT, lay_out, relink, through_linked_blobs
from mutations import mutate_json
from protobuf_fields import wire_field
from test_cpp_image import CASES, clip_tokenizer, picture
from test_cpp_tokenizer import nasty_texts
from torture import Figures, scaled

from dsd_trt import Bundle, BundleError, Scorer
from dsd_trt.bundle.contract import Precision
from dsd_trt.bundle.folder import read_bundle, write_bundle
from dsd_trt.bundle.manifest import Calibration
from dsd_trt.bundle.method import ScoreKind, TokenMask, TrainedFor

pytest_plugins = ("cpp", "exported")

EMBEDDED = ROOT / "dsd_trt" / "data" / "shapes-bundle"
TEXTS = ["a red circle", "A blue square, right of a star", "a red circle", "東京 🙂", "red " * 90]
IMAGES = [picture(64, 64), picture(50, 90), picture(200, 31)]


def agree(
    library: ctypes.CDLL, folder: Path, levels: tuple[float, ...] = (), mode: Any = "pair"
) -> Any:
    """Scores of both runtimes, which have to be the same."""
    expected = Scorer.load(folder, "onnxruntime", mode=mode).score(IMAGES, TEXTS, levels or None)
    scorer = CppScorer(library, folder, mode=mode)
    scores, probabilities, errors = scorer.score(IMAGES, TEXTS, levels)
    assert scorer.has_probability(levels) == np.isfinite(expected.probabilities).all()
    scorer.close()
    assert errors == [""] * len(IMAGES)
    assert scores.std() > 0  # or equality would mean little
    assert np.abs(scores - expected.scores).max() < 1e-5
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-5)
    return scores


KNOWN = read_bundle(EMBEDDED).manifest.method.noise_levels.fractions


@pytest.mark.parametrize("levels", [(), KNOWN[:1], (KNOWN[2], KNOWN[0])])
def test_the_embedded_bundle_scores_as_in_python(
    levels: tuple[float, ...], cpp_library: ctypes.CDLL
) -> None:
    agree(cpp_library, EMBEDDED, levels)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("score", ["attention", "denoising", "attention+denoising", "released"])
@pytest.mark.parametrize("token_mask", ["words_eos", "words", "all"])
def test_every_kind_of_score_is_pythons(
    precision: Precision,
    score: ScoreKind,
    token_mask: TokenMask,
    cpp_library: ctypes.CDLL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind: dict[str, Any] = {"precision": precision, "score": score, "token_mask": token_mask}
    clip_bundle(tmp_path, clip_tokenizer(), monkeypatch, **kind)
    whole = agree(cpp_library, tmp_path)
    assert np.abs(whole - agree(cpp_library, tmp_path, FRACTIONS[1:2])).max() > 1e-4


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "fp32"])
def test_an_adapter_is_fed(
    precision: Precision, request: pytest.FixtureRequest, cpp_library: ctypes.CDLL, tmp_path: Path
) -> None:
    shared: Bundle = request.getfixturevalue(f"fed_{precision}")
    shutil.copytree(shared.folder, tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.manifest.adapter is not None
    fed = agree(cpp_library, bundle.folder)
    file = bundle.path(bundle.manifest.adapter.file)
    (np.fromfile(file, "<f4") / 2).tofile(file)  # another adapter: other scores, so it is fed
    write_bundle(bundle.folder, bundle.manifest)
    with pytest.raises(CppError, match="self-check of the pair scorer"):
        CppScorer(cpp_library, bundle.folder)
    bundle.path("self_check.safetensors").unlink()
    write_bundle(bundle.folder, replace(bundle.manifest, self_check=None))
    assert np.abs(agree(cpp_library, bundle.folder) - fed).max() > 1e-4


def test_a_form_for_cuda_changes_no_score(cpp_library: ctypes.CDLL, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    give_form(folder)
    assert np.array_equal(agree(cpp_library, folder), agree(cpp_library, EMBEDDED))


def test_what_bf16_does_is_for_python_alone(cpp_library: ctypes.CDLL, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    path = folder / "bundle.json"
    figures = {"pair": {"winner_changes": 0.1, "difference": 0.2, "engine": "some, bf16"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bfloat16": figures}))
    assert np.array_equal(agree(cpp_library, folder), agree(cpp_library, EMBEDDED))


def test_maps_are_for_python_alone(cpp_library: ctypes.CDLL, tmp_path: Path) -> None:
    """The demonstration's bundle has them; without, as in older bundles, scores are the same."""
    manifest = read_bundle(EMBEDDED).manifest
    assert manifest.maps is not None
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    (folder / manifest.maps.file).unlink()
    write_bundle(folder, replace(manifest, maps=None))
    assert np.array_equal(agree(cpp_library, folder), agree(cpp_library, EMBEDDED))


def test_no_graph_takes_weights_from_the_maps(cpp_library: ctypes.CDLL, tmp_path: Path) -> None:
    """As in Python: the file of a graph is no file of weights."""
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    take_weights_from(folder, "maps.onnx")
    with pytest.raises(CppError, match=r"takes weights from 'maps\.onnx'"):
        CppScorer(cpp_library, folder)
    with pytest.raises(BundleError, match=r"takes weights from 'maps\.onnx'"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"unet": "pair_scorer.cuda.onnx"}, "'cuda_form.unet' is no graph of the bundle"),
        ({"pair_scorer": "other.onnx"}, "'cuda_form.pair_scorer' names 'other.onnx', which is not"),
        ({"pair_scorer": "tokenizer.json"}, "'cuda_form.pair_scorer' names 'tokenizer.json', whic"),
        ({"pair_scorer": None}, "'cuda_form.pair_scorer' must be a string"),
        ("pair_scorer.cuda.onnx", "'cuda_form' must be an object"),
    ],
)
def test_a_form_for_cuda_is_read_strictly(
    form: object, message: str, cpp_library: ctypes.CDLL, tmp_path: Path
) -> None:
    bundle = give_form(Path(shutil.copytree(EMBEDDED, tmp_path / "bundle")))
    path = bundle.path("bundle.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cuda_form": form}))
    with pytest.raises(CppError, match=re.escape(message)) as refused:
        CppScorer(cpp_library, bundle.folder)
    assert refused.value.status == 2


@pytest.mark.parametrize("trained_for", [None, "pair", "both", "matrix"])
@pytest.mark.parametrize("mode", ["auto", "pair", "matrix"])
def test_the_mode_is_the_one_asked_for_or_the_adapters(
    trained_for: TrainedFor | None,
    mode: Literal["auto", "pair", "matrix"],
    cpp_library: ctypes.CDLL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip_bundle(tmp_path, clip_tokenizer(), monkeypatch, matrix=True, trained_for=trained_for)
    expected = Scorer.load(tmp_path, "onnxruntime", mode=mode)
    scorer = CppScorer(cpp_library, tmp_path, mode=mode)
    assert scorer.mode == expected.mode
    scorer.close()
    agree(cpp_library, tmp_path, mode=mode)
    lists = {"level": 0, "candidates": 9, "slope": 0.0, "texts": {}, "images": {}}
    edit(tmp_path / "bundle.json", lambda m: m["matrix"].update(lists=lists))
    agree(cpp_library, tmp_path, FRACTIONS[1:2], mode=mode)


@pytest.mark.parametrize("budget", [1e-3, 0])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_matrix_mode_in_blocks_of_any_size(
    precision: Precision,
    budget: float,
    cpp_library: ctypes.CDLL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Long and short texts, more images than a batch, one of them damaged."""
    made: dict[str, Any] = {"matrix": True, "precision": precision, "trained_for": "matrix"}
    clip_bundle(tmp_path, clip_tokenizer(), monkeypatch, **made)
    images = [picture(40 + i, 60) for i in range(35)]
    python = Scorer.load(tmp_path, "onnxruntime").score(images, TEXTS)
    scorer = CppScorer(cpp_library, tmp_path, budget)
    scores, probabilities, errors = scorer.score([*images[:3], b"none", *images[3:]], TEXTS)
    scorer.close()
    assert np.flatnonzero(np.isnan(scores).any(axis=1)).tolist() == [3]
    assert [bool(it) for it in errors] == [i == 3 for i in range(36)]
    assert python.scores.std() > 0
    np.testing.assert_allclose(np.delete(scores, 3, axis=0), python.scores, atol=1e-5)
    np.testing.assert_allclose(np.delete(probabilities, 3, axis=0), python.probabilities, atol=1e-5)


def test_matrix_mode_of_an_exported_bundle(
    exported_fp32: Exported, cpp_library: ctypes.CDLL
) -> None:
    folder = exported_fp32.bundle.folder
    scores = {mode: agree(cpp_library, folder, mode=mode) for mode in ("pair", "matrix")}
    assert np.abs(scores["pair"] - scores["matrix"]).max() > 1e-4


def test_a_mode_that_a_bundle_lacks_is_refused(
    cpp_library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trained_for, mode in ((None, "matrix"), ("matrix", "auto")):
        clip_bundle(tmp_path, clip_tokenizer(), monkeypatch, trained_for=trained_for)
        with pytest.raises(CppError, match=r"no matrix scorer.*dsd-trt export --matrix") as refused:
            CppScorer(cpp_library, tmp_path, mode=mode)
        assert refused.value.status == 1


def test_a_fit_to_labelled_pairs_gives_the_same_probabilities(
    cpp_library: ctypes.CDLL, tmp_path: Path
) -> None:
    """Of the command itself, whose fit is another than the demonstration's."""
    folder = tmp_path / "bundle"
    command = ["calibrate", "shapes", "--data", "examples/labelled.csv", "-o", str(folder)]
    program = Path(sys.executable).parent / "dsd-trt"
    subprocess.run([program, *command], cwd=ROOT, capture_output=True, check=True)
    fitted, own = (read_bundle(it).manifest.calibration for it in (folder, EMBEDDED))
    assert fitted is not None
    assert own is not None
    assert fitted.fitted_on is not None
    assert abs(fitted.a - own.a) > 1
    agree(cpp_library, folder)
    scorer = CppScorer(cpp_library, folder)
    scores, probabilities, _ = scorer.score(IMAGES, TEXTS)
    assert scorer.has_probability()
    scorer.close()
    by_hand = 1 / (1 + np.exp(-(fitted.a * scores.astype(np.float64) + fitted.b)))
    np.testing.assert_allclose(probabilities, by_hand, atol=1e-6)
    edit(folder / "bundle.json", lambda m: m["calibration"].update(fitted_on="pairs.csv"))
    with pytest.raises(CppError, match=r"'calibration.fitted_on' must be an object"):
        CppScorer(cpp_library, folder)


def test_a_bundle_without_a_fit_has_scores_alone(cpp_library: ctypes.CDLL, tmp_path: Path) -> None:
    """Null, what older exports wrote in its place, and a fit that is another mode's."""
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle"))
    manifest = read_bundle(folder).manifest
    fitted = manifest.calibration
    assert fitted is not None
    for calibration in (None, Calibration(1.0, 0.0), replace(fitted, b=0.0), replace(fitted, a=1)):
        write_bundle(folder, replace(manifest, calibration=calibration))
        has = calibration in (replace(fitted, b=0.0), replace(fitted, a=1))
        scorer = CppScorer(cpp_library, folder)
        assert scorer.has_probability() == scorer.has_probability(KNOWN[::-1]) == has
        for levels in (KNOWN[:2], (0.3,)):  # a part of its levels, and one that it lacks
            assert not scorer.has_probability(levels)
        scores, probabilities, _ = scorer.score(IMAGES[:1], TEXTS[:2])
        assert np.isfinite(scores).all()
        assert np.isfinite(probabilities).all() == has
        assert np.isnan(probabilities).all() != has
        scorer.close()


@pytest.mark.parametrize("token_mask", ["words_eos", "words", "all"])
def test_an_empty_text_is_refused(
    token_mask: TokenMask, cpp_library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_bundle(tmp_path, clip_tokenizer(), monkeypatch, token_mask=token_mask)
    scorer = CppScorer(cpp_library, tmp_path)
    for empty in ("", "  ", "\n"):
        with pytest.raises(CppError, match="a text has no words to score") as refused:
            scorer.score(IMAGES[:1], ["dog", empty])
        assert refused.value.status == 1
    scorer.close()


def test_batches_do_not_change_scores(cpp_library: ctypes.CDLL) -> None:
    """A budget of nearly nothing: one image, one text, one triple at a time."""
    frugal, usual = CppScorer(cpp_library, EMBEDDED, 1e-3), CppScorer(cpp_library, EMBEDDED)
    difference = np.abs(frugal.score(IMAGES, TEXTS)[0] - usual.score(IMAGES, TEXTS)[0])
    assert difference.max() < 1e-6
    for scorer in (frugal, usual):
        scorer.close()


def test_an_unreadable_image_costs_its_own_row(cpp_library: ctypes.CDLL, tmp_path: Path) -> None:
    scorer = CppScorer(cpp_library, EMBEDDED)
    truncated, missing = CASES["jpeg"][:700], tmp_path / "none.jpg"
    images: list[bytes | Path] = [CASES["jpeg"], truncated, missing, CASES["png rgba"]]
    scores, probabilities, errors = scorer.score(images, TEXTS[:2])
    assert np.isnan(scores).all(axis=1).tolist() == [False, True, True, False]
    assert np.isnan(scores).tolist() == np.isnan(probabilities).tolist()
    assert [bool(error) for error in errors] == [False, True, True, False]
    assert "truncated" in errors[1]
    assert "No such file" in errors[2]
    alone = scorer.score(images[3:], TEXTS[:2])[0]
    assert np.abs(alone - scores[3:]).max() < 1e-6
    scorer.close()


def test_threads_share_a_scorer(cpp_library: ctypes.CDLL) -> None:
    scorer, results = CppScorer(cpp_library, EMBEDDED), []

    def work() -> None:
        results.append(scorer.score(IMAGES[:2], TEXTS[:2])[0])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = scorer.score(IMAGES[:2], TEXTS[:2])[0]
    assert len(results) == 3
    assert all(np.array_equal(result, expected) for result in results)
    scorer.close()


@pytest.mark.parametrize("layout", ["links", "stored", "some are files"])
def test_a_snapshot_of_the_hub_is_scored_as_the_bundle(
    layout: str, cpp_library: ctypes.CDLL, tmp_path: Path
) -> None:
    snapshot = lay_out(tmp_path, EMBEDDED, stored=layout == "stored")
    if layout == "some are files":  # ONNX Runtime follows no link out of the graph's folder
        for name in ("pair_scorer.onnx", "bundle.json"):
            (snapshot / name).unlink()
            shutil.copyfile(EMBEDDED / name, snapshot / name)
    plain, linked = CppScorer(cpp_library, EMBEDDED), CppScorer(cpp_library, snapshot)
    scores = [scorer.score(IMAGES[:1], TEXTS[:2])[0] for scorer in (plain, linked)]
    assert np.array_equal(scores[0], scores[1])
    for scorer in (plain, linked):
        scorer.close()


@pytest.mark.parametrize("damage", LEADING_OUT, ids=lambda damage: damage.__name__)
def test_a_link_that_leads_out_of_the_repository_is_refused(
    damage: Callable[[Path], None], cpp_library: ctypes.CDLL, tmp_path: Path
) -> None:
    snapshot = lay_out(tmp_path, EMBEDDED)
    file = "MODEL_CARD.md"  # the first that is verified
    damage(snapshot / file)
    named = "bundle.json" if damage is through_linked_blobs else file
    with pytest.raises(CppError, match=f"'{named}' lies outside the bundle") as caught:
        CppScorer(cpp_library, snapshot)
    assert caught.value.status == 2


def test_what_of_a_snapshot_was_not_downloaded_is_named(
    cpp_library: ctypes.CDLL, tmp_path: Path
) -> None:
    snapshot = lay_out(tmp_path, EMBEDDED)
    (snapshot / "MODEL_CARD.md").resolve().unlink()
    complaint = f"'MODEL_CARD.md' is missing; .* hf download org/name MODEL_CARD.md .* {COMMIT}"
    with pytest.raises(CppError, match=complaint):
        CppScorer(cpp_library, snapshot)
    relink(snapshot / "bundle.json", "bundle.json")
    with pytest.raises(CppError, match=r"is not a bundle|lies outside"):
        CppScorer(cpp_library, snapshot)


def test_wrong_input_is_refused(cpp_library: ctypes.CDLL) -> None:
    scorer = CppScorer(cpp_library, EMBEDDED)
    for texts, levels, reason in (
        ([], (), "must be a text"),
        ([b"\xff"], (), "not UTF-8"),
        (["red"], (0.3,), "no noise level 0.3"),
    ):
        with pytest.raises(CppError, match=reason) as caught:
            scorer.score(IMAGES, texts, levels)
        assert caught.value.status == 1
    scorer.close()


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def hide_graph(folder: Path) -> None:
    """Take weights from a file that is not listed, of a graph whose tag has more than 32 bits."""
    take_weights_from(folder, "weights.bin", listed=False)
    path = folder / "pair_scorer.onnx"
    model = onnx.load(path, load_external_data=False)
    graph = wire_field(7 | 1 << 30, model.graph.SerializeToString())
    model.ClearField("graph")
    path.write_bytes(model.SerializeToString() + graph)
    edit(folder / "bundle.json", lambda m: vouch(folder, m, path.name))


# What is done to a bundle's folder, and what the message says then.
def with_matrix(manifest: dict[str, Any], mask_width: int | str = 77) -> None:
    """Say that the pair scorer is a matrix scorer too."""
    graph = copy.deepcopy(manifest["graphs"]["pair_scorer"])
    graph["inputs"][3]["shape"][1] = mask_width
    manifest["graphs"]["matrix_scorer"] = graph
    manifest["matrix"] = {"calibration": {"a": 1, "b": 0}, "query_pool": 1}


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "none": (shutil.rmtree, "is not a bundle"),
    "no json": (lambda b: (b / "bundle.json").write_text("{"), "not valid JSON"),
    "no utf-8": (lambda b: (b / "bundle.json").write_bytes(b'{"a": "\xff"}'), "not valid JSON"),
    "schema": (lambda b: edit(b / "bundle.json", lambda m: m.update(schema_version=2)), "schema"),
    "missing": (
        lambda b: edit(b / "bundle.json", lambda m: m.pop("method")),
        "'method' is missing",
    ),
    "unknown": (
        lambda b: edit(b / "bundle.json", lambda m: m["method"].update(new=1)),
        "'method.new' is not known",
    ),
    "type": (
        lambda b: edit(b / "bundle.json", lambda m: m["calibration"].update(a="4")),
        "'calibration.a' must be a finite number",
    ),
    "score": (
        lambda b: edit(b / "bundle.json", lambda m: m["method"].update(score="best")),
        "'method.score' has an unknown value",
    ),
    "contract": (
        lambda b: edit(b / "bundle.json", lambda m: m["preprocessing"].update(resolution=9)),
        "graphs.image_encoder.inputs",
    ),
    "vocabulary": (
        lambda b: edit(b / "bundle.json", lambda m: m["tokenizer"].update(vocabulary=2)),
        "'tokenizer.vocabulary' must be above the ids of BOS, EOS and padding",
    ),
    "altered": (
        lambda b: (b / "pair_scorer.onnx").write_bytes(
            (b / "pair_scorer.onnx").read_bytes()[:-1] + b"\xff"
        ),
        "was altered",
    ),
    "cut": (lambda b: os.truncate(b / "pair_scorer.onnx", 100), "has 100 bytes instead of"),
    "absent": (lambda b: (b / "tokenizer.json").unlink(), "'tokenizer.json' is missing"),
    "mode": (
        lambda b: edit(b / "bundle.json", lambda m: m["method"].update(trained_for="image")),
        "'method.trained_for' has an unknown value",
    ),
    "matrix without a graph": (
        lambda b: edit(
            b / "bundle.json",
            lambda m: m.update(matrix={"calibration": {"a": 1, "b": 0}, "query_pool": 1}),
        ),
        "'graphs.matrix_scorer' is missing",
    ),
    "graph without a mode": (
        lambda b: edit(
            b / "bundle.json",
            lambda m: m["graphs"].update(matrix_scorer=m["graphs"]["pair_scorer"]),
        ),
        "'graphs.matrix_scorer' is not known",
    ),
    "matrix with another graph": (
        lambda b: edit(b / "bundle.json", with_matrix),
        "'graphs.matrix_scorer.inputs' must be",
    ),
    "matrix with other outputs": (
        lambda b: edit(b / "bundle.json", lambda m: with_matrix(m, "L")),
        "'graphs.matrix_scorer.outputs' must be",
    ),
    "unlisted weights": (
        lambda b: take_weights_from(b, "weights.bin", listed=False),
        "'graphs.pair_scorer.file' takes weights from 'weights.bin', which is not among",
    ),
    "unlisted weights of a graph whose tag is cut": (
        hide_graph,
        "'graphs.pair_scorer.file' takes weights from 'weights.bin', which is not among",
    ),
    "weights by another name": (
        lambda b: take_weights_from(b, "./weights.data"),
        "takes weights from './weights.data'",
    ),
    "another ending": (
        lambda b: edit(
            b / "bundle.json", lambda m: m["graphs"]["pair_scorer"].update(file="tokenizer.json")
        ),
        "'tokenizer.json', which is no .onnx",
    ),
    "outside": (
        lambda b: edit(
            b / "bundle.json",
            lambda m: m["files"].update({"../x": {"sha256": "", "size": 0}}),
        ),
        "lies outside",
    ),
    "a NUL in a name": (
        lambda b: edit(
            b / "bundle.json",
            lambda m: m["files"].update({"tokenizer.json\0": m["files"]["tokenizer.json"]}),
        ),
        "file 'tokenizer.json",
    ),
    "a key twice": (
        lambda b: rewrite(b / "bundle.json", '"calibration":', '"calibration": {}, "calibration":'),
        "the key 'calibration' is there twice",
    ),
    "deep": (
        lambda b: (b / "bundle.json").write_text('{"a":' * 100_000),
        "nested deeper than 64 levels",
    ),
    "a token twice": (
        lambda b: alter_tokenizer(b, lambda it: rewrite(it, '"vocab": {', '"vocab": {"!": 0, ')),
        "the key '!' is there twice",
    ),
    "an id beyond 32 bits": (
        lambda b: alter_tokenizer(
            b, lambda it: edit(it, lambda t: t["model"]["vocab"].update({"a</w>": 2**32}))
        ),
        "a token's id is 4294967296",
    ),
    "a pipe": (lambda b: put_a_pipe(b / "bundle.json"), "is not a bundle"),
}


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def alter_tokenizer(folder: Path, change: Callable[[Path], None]) -> None:
    """Change a bundle's tokenizer and make the manifest's hash fit."""
    change(folder / "tokenizer.json")
    edit(folder / "bundle.json", lambda m: vouch(folder, m, "tokenizer.json"))


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def vouch(folder: Path, manifest: dict[str, Any], name: str) -> None:
    """Make a manifest's hash of a file fit, as a forger would."""
    content = (folder / name).read_bytes()
    manifest["files"][name] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bundle.json", 60),
        ("tokenizer.json", 60),
        pytest.param("bundle.json", scaled(2000, 40), marks=pytest.mark.torture),
        pytest.param("tokenizer.json", scaled(2000, 40), marks=pytest.mark.torture),
    ],
)
def test_mutated_files_open_or_are_refused(
    name: str,
    count: int,
    cpp_library: ctypes.CDLL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    figures.look_for("mutated bundles in the C++ library", "foreign exceptions")
    clip_bundle(tmp_path, clip_tokenizer(), monkeypatch)
    content, manifest = ((tmp_path / it).read_bytes() for it in (name, "bundle.json"))
    outcomes = []
    for seed in range(count):
        (tmp_path / "bundle.json").write_bytes(manifest)
        (tmp_path / name).write_bytes(mutate_json(content, random.Random(seed)))
        if name != "bundle.json":
            edit(tmp_path / "bundle.json", lambda m: vouch(tmp_path, m, name))
        try:
            scorer = CppScorer(cpp_library, tmp_path)
            try:
                scorer.score(IMAGES[:1], ["a cat"])
            finally:
                scorer.close()
            outcomes.append(0)
        except CppError as error:
            outcomes.append(error.status)
        figures.ended("refused" if outcomes[-1] else "opened")
        if outcomes[-1] not in (0, 1, 2, 4):  # what "dsd_status" has no word for
            figures.fault("foreign exceptions", f"{name}, seed {seed}: {outcomes[-1]}")
    assert outcomes.count(2) > count / 4


def test_weights_beside_a_graph_are_read_where_they_are_listed(
    cpp_library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_bundle(tmp_path, clip_tokenizer(), monkeypatch)
    scores = []
    for _ in range(2):
        scorer = CppScorer(cpp_library, tmp_path)
        scores.append(scorer.score(IMAGES[:1], ["a cat"])[0])
        scorer.close()
        take_weights_from(tmp_path, "weights.bin")
    assert np.array_equal(scores[0], scores[1])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused(
    damage: str, cpp_library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    clip_bundle(folder, clip_tokenizer(), monkeypatch)
    CppScorer(cpp_library, folder).close()
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(CppError, match=message) as caught:
        CppScorer(cpp_library, folder)
    assert caught.value.status == 2


def test_a_token_without_a_row_of_the_embedding_is_refused_before_it_is_encoded(
    cpp_library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = clip_tokenizer()
    rows = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["<cat>"])
    clip_bundle(tmp_path, tokenizer, monkeypatch)
    edit(tmp_path / "bundle.json", lambda m: m["tokenizer"].update(vocabulary=rows))
    scorer = CppScorer(cpp_library, tmp_path)
    scorer.score(IMAGES[:1], ["a cat"])
    with pytest.raises(CppError, match=f"a token with the id {rows}, .* has {rows} rows") as caught:
        scorer.score(IMAGES[:1], ["a <cat>"])
    assert caught.value.status == 2
    scorer.close()


def test_a_graph_that_is_none_or_another_is_refused(
    cpp_library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hashes agree with what is there: it is ONNX Runtime, or the signature, that does not."""
    bundle = clip_bundle(tmp_path, clip_tokenizer(), monkeypatch)
    graph = bundle.path("pair_scorer.onnx")
    for content, reason in (
        (b"no graph", "refuses"),
        (bundle.path("text_encoder.onnx").read_bytes(), "does not have the tensors"),
    ):
        graph.write_bytes(content)
        write_bundle(tmp_path, bundle.manifest)
        with pytest.raises(CppError, match=reason) as caught:
            CppScorer(cpp_library, tmp_path)
        assert caught.value.status == 4


def rows(text: str) -> list[tuple[str, str, float, float]]:
    return [
        (row["image"], row["text"], float(row["score"]), float(row["probability"] or "nan"))
        for row in csv.DictReader(io.StringIO(text))
    ]


@pytest.mark.parametrize("fitted", [True, False])
def test_the_example_prints_what_the_command_prints(
    cpp_build: Path, tmp_path: Path, fitted: bool
) -> None:
    bundle = read_bundle(Path(shutil.copytree(EMBEDDED, tmp_path / "bundle")))
    if not fitted:
        write_bundle(bundle.folder, replace(bundle.manifest, calibration=None))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "examples" / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    given = ["examples/images", "examples/texts.txt"]
    python = [str(Path(sys.executable).parent / "dsd-trt"), "score", "--engine", "onnxruntime"]
    commands = (
        [*python, "-f", "csv", *given, "--bundle", "bundle"],
        [str(cpp_build / "dsd-score"), "bundle", *given],
    )
    expected, got = (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        for command in commands
    )
    assert expected.returncode == got.returncode == 3
    assert "broken.png: cannot be decoded" in got.stderr
    for mine, theirs in zip(rows(got.stdout), rows(expected.stdout), strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2:] == pytest.approx(theirs[2:], abs=1e-5, nan_ok=not fitted)
    # Of a bundle with both modes, the command says which one it means.
    warning = re.compile("no match probabilities(?: in pair mode)?: none were fitted")
    warned = [bool(warning.search(it.stderr)) for it in (expected, got)]
    assert warned == [not fitted] * 2
    if not fitted:
        assert got.stdout.splitlines()[1].endswith(",")


def guide(language: str) -> list[str]:
    text = (ROOT / "docs" / "cpp.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_guide_runs_to_the_letter(cpp_build: Path, tmp_path: Path) -> None:
    """All of its commands, in its order; `cpp_build` has run the first."""
    source = guide("cpp")[0]
    lines = [line for block in guide("sh") for line in block.splitlines()]
    installing = next(it for it, line in enumerate(lines) if "--install" in line)
    own = next(it for it, line in enumerate(lines) if "dsd-score-c" in line)
    lines = [*lines[:installing], lines[own]]  # test_cpp_install.py runs the rest
    assert lines[0] == "make cpp"
    assert len(lines) == 5
    for folder in ("engines", "dsd_trt", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "first.cpp").write_text(source)
    printed = [
        subprocess.run(
            line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for line in lines[1:]
    ]
    texts = ["a large yellow star", "a small red cross"]
    image = ROOT / "examples" / "images" / "lone-star.png"
    expected = Scorer.load(EMBEDDED, engine="onnxruntime").score([image], texts)
    assert len(rows(printed[0])) == 14 * 16
    assert printed[2].split() == [f"{p:.3f}" for p in expected.probabilities[0]]
    score, probability = map(float, printed[3].split())
    assert score == pytest.approx(expected.scores[0, 0], abs=1e-5)
    assert probability == pytest.approx(expected.probabilities[0, 0], abs=1e-5)


@pytest.fixture
def small_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A bundle, images whole and truncated, and nasty texts, as arguments of the example."""
    clip_bundle(tmp_path / "bundle", clip_tokenizer(), monkeypatch, score="released")
    images = tmp_path / "images"
    images.mkdir()
    for place, (name, content) in enumerate(CASES.items()):
        for part, length in (("whole", len(content)), ("cut", len(content) * 2 // 3)):
            (images / f"{place}-{part}.{name[:3]}".replace("jpe", "jpeg")).write_bytes(
                content[:length]
            )
    texts = [" ".join(text.split()) for text in nasty_texts(100)]
    (tmp_path / "texts.txt").write_text("\n".join(texts), "utf-8")
    return [str(tmp_path / "bundle"), str(images), str(tmp_path / "texts.txt")]


@pytest.mark.slow
def test_sanitizers_find_nothing(small_case: list[str]) -> None:
    """AddressSanitizer, its leak checker and UndefinedBehaviorSanitizer end a program with 1."""
    flags = "-DDSD_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug"
    sanitized = build("build/sanitized", f"CMAKE_ARGS={flags}")
    symbols = subprocess.run(
        ["nm", "-D", sanitized / "libdsd.so"], capture_output=True, text=True, check=True
    ).stdout
    assert "__asan_init" in symbols
    assert "__ubsan_handle" in symbols
    command = [str(sanitized / "dsd-score"), *small_case]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr  # some images are truncated
    assert len(rows(done.stdout)) > 3000
    best = [command[0], "--top-k", "3", *small_case]
    done = subprocess.run(best, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert len(rows(done.stdout)) > 30
    altered = Path(small_case[0]) / "tokenizer.json"
    altered.write_bytes(altered.read_bytes()[:-9])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "bytes instead of" in done.stderr


@pytest.mark.slow
def test_valgrind_finds_nothing(small_case: list[str], cpp_build: Path, tmp_path: Path) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    bundle, images, _ = small_case
    (tmp_path / "few.txt").write_text("a red circle\nit's 東京 🙂\n", "utf-8")
    few = [str(Path(images) / name) for name in ("0-whole.jpeg", "8-whole.png", "8-cut.png")]
    leaks = ("--leak-check=full", "--errors-for-leak-kinds=definite")
    known = f"--suppressions={ROOT / 'engines' / 'cpp' / 'valgrind.supp'}"
    done = subprocess.run(
        [
            "valgrind",
            "--error-exitcode=9",
            *leaks,
            known,
            cpp_build / "dsd-score",
            bundle,
            *few,
            str(tmp_path / "few.txt"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "ERROR SUMMARY: 0 errors" in done.stderr
    assert len(rows(done.stdout)) == 4


def test_limits_of_a_call_are_those_of_python(
    cpp_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpp, image = CppScorer(cpp_library, EMBEDDED), CASES["png rgba"]
    for name, most, images, texts in (
        ("IMAGES", 1, [image] * 2, ["a"]),
        ("TEXTS", 1, [image], ["a", "b"]),
        ("PAIRS", 3, [image] * 2, ["a", "b"]),
        ("TEXT_CHARACTERS", 4, [image], ["\u00e9\u4e2d\U0001f600bc"]),
    ):
        variable = f"DSD_TRT_MAX_{name}"
        monkeypatch.setenv(variable, str(most))
        with pytest.raises(CppError, match=f"more than {most} .*; the limit is {variable}"):
            cpp.score(images, texts)
        monkeypatch.setenv(variable, str(most + 1))
        assert np.isfinite(cpp.score(images, texts)[0]).all()
        monkeypatch.setenv(variable, "-1")
        with pytest.raises(CppError, match=f"{variable} must be a whole number above 0"):
            cpp.score(images, texts)
        monkeypatch.delenv(variable)
    cpp.close()
