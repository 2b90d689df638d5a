"""An adapter as the graph's input: the scores of one folded in, and another in its place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from checkpoints import write_adapter
from exported import Exported
from safetensors.torch import load_file

from dsd_trt import Scorer
from dsd_trt.bundle.contract import graph_contract
from dsd_trt.bundle.folder import Bundle, read_bundle
from dsd_trt.engine.tensorrt.plan import Profile, find_plan
from dsd_trt.engine.tensorrt.runner import load_library
from dsd_trt.engines.build import build_plans
from dsd_trt.engines.compile import CompileSettings
from dsd_trt.errors import BundleError, InputError, ModelError
from dsd_trt.export.adapt import replace_adapter
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.recipe import Recipe
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.evaluation.by_model import by_model
from dsd_trt.train.question import Question
from dsd_trt.train.scoring.adapter import Adapter

pytest_plugins = ("exported",)

PAIRS = graph_contract("fp32", 32, (4, 8, 8), 32)["pair_scorer"]
TEXTS = ["a red circle", "two blue squares left of a star", "green"]


@pytest.fixture(scope="session")
def fed(fed_fp32: Bundle) -> Bundle:
    return fed_fp32


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "other", checkpoint_folder, seed=7)


def scores(bundle: Bundle, engine: str = "onnxruntime") -> Any:
    pictures = np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), np.uint8)
    return Scorer.load(bundle.folder, engine=engine).score(list(pictures), TEXTS).scores


def in_torch(settings: ExportSettings) -> Any:
    """What `scores` gives, computed by PyTorch with the adapter of `settings`."""
    pictures = np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), np.uint8)
    questions = [
        Question("text", tuple((picture, text) for text in TEXTS), 0, str(i))
        for i, picture in enumerate(pictures)
    ]
    return np.array(by_model(settings.model, settings.adapter, levels=settings.levels)(questions))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_scores_are_those_of_the_adapter_folded_in(
    exported_fp32: Exported, fed: Bundle, engine: str
) -> None:
    assert np.abs(scores(fed, engine) - scores(exported_fp32.bundle, engine)).max() < 1e-6


def test_another_adapter_scores_as_a_new_export_would(
    fed: Bundle, other: Path, exported_fp32: Exported, tmp_path: Path
) -> None:
    settings = replace(exported_fp32.settings, adapter=other)
    expected = in_torch(settings)
    assert np.abs(expected - scores(fed)).max() > 1e-4  # or equality would mean nothing

    replace_adapter(fed, other, tmp_path / "adapted")
    adapted = read_bundle(tmp_path / "adapted")

    assert np.abs(scores(adapted) - expected).max() < 1e-5
    recipe = Recipe.read(settings)
    known = load_file(adapted.path("self_check.safetensors"))
    fed_pairs = [known[f"pair_scorer.{it.name}"] for it in PAIRS.inputs if it.batched]
    with torch.no_grad():
        score, *_ = recipe.build_scoring(recipe.checkpoint.read_unet())(*fed_pairs)
    assert (score - known["pair_scorer.score"]).abs().max() < 1e-5
    got, wanted = adapted.manifest, recipe.manifest
    assert got.method == wanted.method
    assert got.calibration == wanted.calibration
    assert got.provenance.adapter_hash == wanted.provenance.adapter_hash
    assert got.parity["adapter_hash"] == fed.manifest.provenance.adapter_hash
    assert "parity figures are of the one before" in (adapted.folder / "MODEL_CARD.md").read_text()


def test_a_bundle_is_adapted_in_its_own_place(fed: Bundle, other: Path, tmp_path: Path) -> None:
    once = tmp_path / "once"
    replace_adapter(fed, other, once)
    with pytest.raises(InputError, match="is not empty"):
        replace_adapter(read_bundle(once), other, once)
    first = scores(read_bundle(once))
    adapter = Adapter.load(other)
    changed = replace(adapter, head_mode="calibrated", a=3.0)
    changed.save(tmp_path / "changed")
    replace_adapter(read_bundle(once), tmp_path / "changed", once, force=True)

    kept = read_bundle(once).manifest.calibration
    assert kept is not None
    assert kept.a == 3.0
    assert np.array_equal(scores(read_bundle(once)), first)
    assert read_bundle(fed.folder).manifest == fed.manifest  # shares files, and is left alone


def test_neither_bundle_shares_a_file_with_the_other(
    fed: Bundle, other: Path, tmp_path: Path
) -> None:
    """ONNX's own tools refuse weights that have two names, the first bundle's as well."""
    mine = read_bundle(Path(shutil.copytree(fed.folder, tmp_path / "mine")))
    (mine.folder / "not of the bundle").symlink_to(sys.executable)
    taken: list[int] = []
    adapted = replace_adapter(mine, other, tmp_path / "adapted", copied=taken.append)
    (mine.folder / "not of the bundle").unlink()
    assert {path.name for path in adapted.folder.iterdir()} == {*mine.manifest.files, "bundle.json"}
    sizes = [entry.size for entry in mine.manifest.files.values()]
    assert taken == [0] or 0.9 * sum(sizes) < taken[0] <= sum(sizes)
    for bundle in (mine, adapted):
        assert {path.stat().st_nlink for path in bundle.folder.iterdir()} == {1}
        for graph in bundle.manifest.graphs.values():
            path = bundle.path(graph.file)
            onnx.load(path)
            onnx.checker.check_model(path)
    inspect = [str(Path(sys.executable).with_name("polygraphy")), "inspect", "model"]
    done = subprocess.run(
        [*inspect, mine.path("text_encoder.onnx")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_graphs_and_plans_outlive_the_adapter(fed: Bundle, other: Path, tmp_path: Path) -> None:
    library = load_library("tensorrt-rtx")
    replace_adapter(fed, other, tmp_path / "with-plan")
    bundle = read_bundle(tmp_path / "with-plan")
    settings = CompileSettings((Profile(1, 2, 4),), ("8.6",))
    list(build_plans(bundle, "tensorrt-rtx", settings, ["pair_scorer"]))

    first = write_changed(other, tmp_path / "third", head_mode="uniform")
    replace_adapter(bundle, first, tmp_path / "adapted")

    adapted = read_bundle(tmp_path / "adapted")
    for name in adapted.manifest.graphs:
        assert adapted.manifest.graph_hash(name) == fed.manifest.graph_hash(name)
    find_plan(
        adapted.folder,
        adapted.manifest,
        "pair_scorer",
        "tensorrt-rtx",
        str(library.__version__),
        "8.6",
    )


@pytest.mark.slow  # exports
def test_an_fp16_bundle_takes_it_too(
    exported_fp32: Exported, fed_fp16: Bundle, other: Path, tmp_path: Path
) -> None:
    assert min(run["score"]["spearman"] for run in fed_fp16.manifest.parity["runs"]) > 0.999
    adapted = replace_adapter(fed_fp16, other, tmp_path / "adapted")
    expected = in_torch(replace(exported_fp32.settings, adapter=other))
    assert np.abs(scores(adapted) - expected).max() < 2e-3


def write_changed(adapter: Path, folder: Path, **changes: Any) -> Path:
    replace(Adapter.load(adapter), **changes).save(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"head_mode": "dynamic"}, "weighs heads dynamically"),
        ({"levels": (0.2, 0.4)}, "other noise levels"),
        ({"mode": "matrix"}, "trained for matrix mode"),
        ({"score": "denoising"}, 'trained for the score "denoising"'),
        ({"base": {"unet": "0"}}, "trained on another model"),
    ],
)
def test_an_adapter_the_graphs_cannot_take_is_refused(
    fed: Bundle, other: Path, tmp_path: Path, changes: Any, complaint: str
) -> None:
    wrong = write_changed(other, tmp_path / "wrong", **changes)
    with pytest.raises(ModelError, match=complaint) as refused:
        replace_adapter(fed, wrong, tmp_path / "out")
    assert "--score" not in str(refused.value)  # an option of export alone
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["overflow", "NaN calibration", "unknown field", "no heads"])
def test_a_working_bundle_outlives_an_adapter_that_makes_none(
    fed: Bundle, other: Path, tmp_path: Path, kind: str
) -> None:
    """Also where it is to be replaced in its place, which is not before the new one scores."""
    mine = read_bundle(Path(shutil.copytree(fed.folder, tmp_path / "mine")))
    before = {path.name: path.read_bytes() for path in mine.folder.iterdir()}
    adapter = Adapter.load(other)
    changes: dict[str, dict[str, Any]] = {
        "overflow": {"prompt_state": {k: v * 1e30 for k, v in adapter.prompt_state.items()}},
        "NaN calibration": {"a": float("nan")},
        "unknown field": {"head_mode": "best"},
        "no heads": {"head_weights": [torch.zeros_like(it) for it in adapter.head_weights]},
    }
    wrong = write_changed(other, tmp_path / "wrong", **changes[kind])
    with pytest.raises(ModelError):
        replace_adapter(mine, wrong, mine.folder, force=True)
    assert {path.name: path.read_bytes() for path in mine.folder.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "wrong"}


def test_head_weights_of_scored_layers_that_sum_to_nothing_are_refused(other: Path) -> None:
    adapter = Adapter.load(other)
    first, *rest = adapter.head_weights
    lacking = replace(adapter, head_weights=[torch.zeros_like(first), *rest])
    with pytest.raises(ModelError, match="gives the scored layers no weight"):
        lacking.weights_of([0], [len(first)])


def test_prompts_of_another_rank_are_refused(fed: Bundle, other: Path, tmp_path: Path) -> None:
    adapter = Adapter.load(other)
    state = {
        name: value[:, :1]
        if name.endswith(".up")
        else value[:1]
        if name.endswith(".down")
        else value
        for name, value in adapter.prompt_state.items()
    }
    wrong = write_changed(other, tmp_path / "wrong", prompt_state=state)
    with pytest.raises(ModelError, match="other sizes"):
        replace_adapter(fed, wrong, tmp_path / "out")


def test_a_bundle_with_its_adapter_folded_in_takes_no_other(
    exported_fp32: Exported, other: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="folded into its graphs"):
        replace_adapter(exported_fp32.bundle, other, tmp_path / "out")


def test_without_an_adapter_there_is_nothing_to_feed(
    exported_fp32: Exported, tmp_path: Path
) -> None:
    settings = replace(exported_fp32.settings, verify="quick", adapter=None, adapter_input=True)
    with pytest.raises(InputError, match="name one with --adapter"):
        export_bundle(settings, tmp_path / "out")


def test_a_vector_of_the_wrong_length_is_refused(fed: Bundle, tmp_path: Path) -> None:
    plain = json.loads((fed.folder / "bundle.json").read_text())
    plain["adapter"]["tensors"]["head_weights"] = [5]
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in fed.folder.iterdir():
        (folder / path.name).hardlink_to(path)
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").write_text(json.dumps(plain))
    with pytest.raises(BundleError, match="adapter"):
        read_bundle(folder)
