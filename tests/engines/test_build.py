"""`dsd-trt build`: real plans by TensorRT-RTX, which needs no GPU to build, and what it refuses."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
import tensorrt_rtx
from bundles import make_bundle
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from planted import plant

from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.folder import write_bundle
from dsd_trt.commands.main import cli
from dsd_trt.engine.tensorrt.plan import Plan, Profile, find_plan, parse_profile, plans
from dsd_trt.engines.build import build_plans
from dsd_trt.engines.compile import CompileSettings, batch_shapes, compile_plan
from dsd_trt.engines.layers import LayerTable, check_precision
from dsd_trt.engines.network import GraphRefusedError, parse
from dsd_trt.errors import EngineError, InputError, LayerPrecisionError
from dsd_trt.installation import install_command

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)

SETTINGS = CompileSettings((Profile(1, 2, 4),), ("8.6", "12.0"))
VERSION = str(tensorrt_rtx.__version__)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(part) for part in arguments])


@pytest.fixture(scope="module")
def half(exported_fp16: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model's FP16 bundle, a copy of its own."""
    folder = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(exported_fp16.bundle.folder, folder)
    return Bundle(folder, exported_fp16.bundle.manifest)


@pytest.fixture(scope="module")
def built(half: Bundle) -> dict[str, tuple[Plan, LayerTable]]:
    """Its plans, and what the parser made of each graph."""
    return {
        plan.sidecar.graph: (plan, table)
        for plan, table in build_plans(half, "tensorrt-rtx", SETTINGS)
    }


# Building


def test_every_graph_becomes_a_plan(
    half: Bundle, built: dict[str, tuple[Plan, LayerTable]]
) -> None:
    assert built.keys() == half.manifest.graphs.keys()
    for name, (plan, _) in built.items():
        content = plan.path.read_bytes()
        assert len(content) == plan.sidecar.size > 10_000
        assert hashlib.sha256(content).hexdigest() == plan.sidecar.sha256
        for capability in ("8.6", "12.0"):
            found = find_plan(half.folder, half.manifest, name, "tensorrt-rtx", VERSION, capability)
            assert found == plan
    assert not list(half.folder.glob("engines/.*"))


def test_the_bundle_still_verifies_and_scores(
    half: Bundle, built: dict[str, tuple[Plan, LayerTable]]
) -> None:
    assert built
    Scorer.load(half.folder, engine="onnxruntime")


def test_the_real_library_reads_the_plan_as_far_as_it_can_without_a_gpu(
    built: dict[str, tuple[Plan, LayerTable]],
) -> None:
    runtime = tensorrt_rtx.Runtime(tensorrt_rtx.Logger(tensorrt_rtx.Logger.INTERNAL_ERROR))
    # It reads the header, and fails where it asks for the GPU.
    assert runtime.deserialize_cuda_engine(built["text_encoder"][0].path.read_bytes()) is None


def test_building_again_replaces_the_plan(
    half: Bundle, built: dict[str, tuple[Plan, LayerTable]]
) -> None:
    before = len(list(plans(half.folder)))
    (again,) = build_plans(half, "tensorrt-rtx", SETTINGS, ["text_encoder"])
    assert again[0].folder == built["text_encoder"][0].folder
    assert len(list(plans(half.folder))) == before


def test_progress_never_falls_and_ends_at_one(half: Bundle) -> None:
    told: list[float] = []
    list(build_plans(half, "tensorrt-rtx", SETTINGS, ["text_encoder"], step=told.append))
    assert len(told) > 20
    assert told[-1] == 1
    assert all(0 <= share <= 1 for share in told)
    assert all(before <= after + 1e-9 for before, after in itertools.pairwise(told))


def test_interrupting_a_build_stops_it_and_leaves_nothing(half: Bundle) -> None:
    before = {plan.folder for plan in plans(half.folder)}

    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    other = replace(SETTINGS, profiles=(Profile(1, 1, 1),))
    with pytest.raises(KeyboardInterrupt):
        list(build_plans(half, "tensorrt-rtx", other, ["text_encoder"], step=interrupt))
    assert {plan.folder for plan in plans(half.folder)} == before


def test_the_command_builds_and_reports(half: Bundle) -> None:
    result = run(
        *("build", half.folder, "--engine", "tensorrt-rtx", "--graphs", "pair_scorer"),
        *("--batch", "1,2,4", "--batch", "8,8,8", "--compute-capability", "86,120", "--report"),
        *("--workspace", "2"),
    )
    assert result.exit_code == 0, result.output
    assert "fusable" in result.output
    assert "scored" in result.output
    plan = find_plan(half.folder, half.manifest, "pair_scorer", "tensorrt-rtx", VERSION, "12.0")
    assert plan.sidecar.profiles == (Profile(1, 2, 4), Profile(8, 8, 8))
    sidecar = json.loads((plan.folder / "engine.json").read_text())
    assert sidecar["compute_capabilities"] == ["8.6", "12.0"]
    assert sidecar["version"] == VERSION


@pytest.mark.parametrize("graph", ["image_encoder", "text_encoder", "pair_scorer"])
def test_polygraphy_finds_the_whole_graph_supported(half: Bundle, graph: str) -> None:
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("polygraphy"), "inspect", "capability"),
            half.path(half.manifest.graphs[graph].file),
        ],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Graph is fully supported by TensorRT" in done.stdout


# Precision, proven


def test_scores_are_fp32_and_the_bulk_is_fp16(
    half: Bundle, built: dict[str, tuple[Plan, LayerTable]]
) -> None:
    table = built["pair_scorer"][1]
    scoring = table.scoring()
    kinds = {layer.kind for layer in scoring}
    assert {"MATRIX_MULTIPLY", "SOFTMAX", "REDUCE"} <= kinds
    assert {layer.dtype for layer in scoring if layer.dtype in ("FLOAT", "HALF")} == {"FLOAT"}
    logits = [layer for layer in scoring if layer.kind == "MATRIX_MULTIPLY"]
    assert len(logits) == len(half.manifest.method.score_layers)
    assert table.half_share() == 1
    assert built["text_encoder"][1].half_share() == 1


def test_self_attention_is_fusable_and_cross_attention_is_scored(
    half: Bundle, built: dict[str, tuple[Plan, LayerTable]]
) -> None:
    attentions = built["pair_scorer"][1].attentions()
    layers = len(half.manifest.method.score_layers)
    assert sum(it.scored for it in attentions) == layers
    others = [it for it in attentions if not it.scored]
    assert len(others) >= layers
    assert all(it.fusable and it.softmax.dtype == "HALF" for it in others)
    assert not any(it.fusable for it in attentions if it.scored)


def _planted(bundle: Bundle, folder: Path, operator: str, count: int = 1) -> Bundle:
    """A bundle some of whose FP32 nodes of a kind are made to compute in FP16."""
    shutil.copytree(bundle.folder, folder)
    path = folder / bundle.manifest.graphs["pair_scorer"].file
    model = onnx.load(path, load_external_data=False)
    plant(model, operator, count)
    path.write_bytes(model.SerializeToString())
    shutil.rmtree(folder / "engines", ignore_errors=True)
    return write_bundle(folder, bundle.manifest)


@pytest.mark.parametrize("operator", ["MatMul", "Softmax", "Exp", "Log"])
def test_a_planted_cast_among_the_scores_is_caught(
    half: Bundle, operator: str, tmp_path: Path
) -> None:
    planted = _planted(half, tmp_path / "planted", operator)
    with pytest.raises(LayerPrecisionError, match=f"{operator}.* is HALF"):
        list(build_plans(planted, "tensorrt-rtx", SETTINGS, ["pair_scorer"]))
    assert not list(plans(planted.folder))


def test_an_fp32_network_in_an_fp16_bundle_is_caught(exported_fp32: Exported) -> None:
    bundle = exported_fp32.bundle
    table = LayerTable.of(parse(tensorrt_rtx, bundle.path("pair_scorer.onnx")))
    check_precision(table, bundle.manifest, "pair_scorer")
    with pytest.raises(LayerPrecisionError, match=r"only 0\.0% .* are FP16"):
        check_precision(table, replace(bundle.manifest, precision="fp16"), "pair_scorer")


# Refusing


def test_what_the_parser_refuses_is_named(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3])
    found = helper.make_tensor_value_info("y", TensorProto.INT64, [2, None])
    node = helper.make_node("NonZero", ["x"], ["y"], name="the.guilty/NonZero")
    graph = helper.make_graph([node], "g", [image], [found])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "refused.onnx"
    onnx.save(model, path)
    with pytest.raises(GraphRefusedError) as caught:
        parse(tensorrt_rtx, path)
    assert "the.guilty/NonZero" in str(caught.value)
    assert "NonZero" in str(caught.value)
    assert ".cpp:" in str(caught.value)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"junk" * 100)
    with pytest.raises(GraphRefusedError, match=r"junk\.onnx is refused"):
        parse(tensorrt_rtx, path)


def test_a_build_that_fails_says_why(half: Bundle) -> None:
    graph = half.manifest.graphs["text_encoder"]
    network = parse(tensorrt_rtx, half.path(graph.file))
    wrong = replace(graph, inputs=(replace(graph.inputs[0], shape=("T", 5)),))
    shapes = [batch_shapes(wrong, it) for it in SETTINGS.profiles]
    with pytest.raises(EngineError, match=r"could not build a plan: .*input_ids"):
        compile_plan(network, shapes, SETTINGS)


@pytest.mark.parametrize(
    ("capability", "why"),
    [
        ("7.5", "multiplies no FP32 matrices there"),
        ("9.0", "does not know them"),
        ("3.0", "does not know them"),
        ("x", "does not know them"),
    ],
)
def test_a_gpu_it_cannot_build_for_is_refused(half: Bundle, capability: str, why: str) -> None:
    settings = replace(SETTINGS, compute_capabilities=(capability,))
    with pytest.raises(InputError, match=rf"{why}.*Choose from 8\.0, .*--engine tensorrt"):
        list(build_plans(half, "tensorrt-rtx", settings, ["text_encoder"]))


def test_the_inside_of_a_normalisation_cannot_be_read_back() -> None:
    """The docs say so; should a release show it, it is to be checked like the rest."""
    assert not hasattr(tensorrt_rtx.INormalizationLayer, "compute_precision")


@pytest.mark.parametrize("text", ["1,2", "4,2,8", "0,1,2", "a,b,c", "1,2,3,4"])
def test_a_batch_out_of_order_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="MIN,OPT,MAX"):
        parse_profile(text)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--engine", "tensorrt"], 4, install_command("gpu")),
        (["--compute-capability", "8.6"], 2, "leave out --compute-capability"),
        (["--engine", "tensorrt-rtx", "--graphs", "scorer"], 2, "no graph 'scorer'"),
        (["--engine", "tensorrt-rtx", "--batch", "8,4,1"], 2, "MIN,OPT,MAX"),
        (["--engine", "tensorrt-rtx", "--compute-capability", "75"], 2, "multiplies no FP32"),
        (["--engine", "tensorrt-rtx", "--timing-cache", "cache"], 2, "leave out --timing-cache"),
    ],
)
def test_the_command_says_what_it_cannot_do(
    half: Bundle, arguments: list[str], code: int, said: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        cli.main(["build", str(half.folder), *arguments], standalone_mode=False)
    assert caught.value.exit_code == code  # type: ignore[attr-defined]
    assert said in str(caught.value)


def test_a_folder_that_cannot_be_written_to_is_an_error(half: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(half.folder, folder, ignore=shutil.ignore_patterns("engines"))
    (folder / "engines").write_text("in the way")
    with pytest.raises(InputError, match="cannot write a plan"):
        list(build_plans(Bundle(folder, half.manifest), "tensorrt-rtx", SETTINGS, ["text_encoder"]))


def test_a_graph_without_attention_logits_is_refused(tmp_path: Path) -> None:
    stand_in = make_bundle(tmp_path / "stand-in")
    table = LayerTable.of(parse(tensorrt_rtx, stand_in.path("pair_scorer.onnx")))
    method = replace(stand_in.manifest.method, score_layers=tuple(range(99)))
    with pytest.raises(LayerPrecisionError, match="the attention logits of 99 layers"):
        check_precision(table, replace(stand_in.manifest, method=method), "pair_scorer")
