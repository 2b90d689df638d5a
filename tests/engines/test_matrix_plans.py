"""Plans of the matrix scorer: the cut, real plans by TensorRT-RTX, and the engine that runs them.

Without a GPU, ONNX Runtime computes what plans would, behind TensorRT's interface: every shape has
to lie in the profiles that the build works out, and every address in memory that is alive.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from attention_graph import by_formula, feeds_of, write_attention
from bundles import make_bundle
from click.testing import CliRunner
from fake_gpu import FakeCuda
from numpy.typing import NDArray
from plans_on_cpu import Half, PlansOnCpu, shapes_at_the_cut, write_plans
from planted import plant

import dsd_trt.engine.cuda as cuda_module
from dsd_trt import Bundle, Scorer
from dsd_trt.bundle_facts import BundleFacts
from dsd_trt.commands.main import cli
from dsd_trt.engine.cut import CutGraph
from dsd_trt.engine.onnxruntime.cpu import OnnxRuntimeEngine, open_session, session_options
from dsd_trt.engine.tensorrt.backend import TENSORRT
from dsd_trt.engine.tensorrt.matrix import TensorRTMatrixEngine
from dsd_trt.engine.tensorrt.plan import PARTS, Part, Profile, find_plans, open_plan
from dsd_trt.engines.build import build_plans
from dsd_trt.engines.compile import CompileSettings
from dsd_trt.engines.gpu_check.feeds import draw_feeds
from dsd_trt.engines.layers import LayerTable, check_precision
from dsd_trt.engines.network import GraphRefusedError, parse_part
from dsd_trt.engines.source import read_source, texts_at_once
from dsd_trt.errors import EngineError, InputError, LayerPrecisionError
from dsd_trt.export.settings import ExportSettings

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)

BATCHES = (Profile(1, 2, 3), Profile(4, 5, 6))
SIZES = [(1, 1, 1), (3, 5, 16), (4, 6, 77), (6, 1, 40)]
SETTINGS = CompileSettings(BATCHES, ("8.6", "12.0"))
VERSION = str(tensorrt_rtx.__version__)


@pytest.fixture(scope="module")
def full(exported_fp32: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model's FP32 bundle with both modes and image-conditional prompts, a copy."""
    folder = tmp_path_factory.mktemp("plans") / "bundle"
    shutil.copytree(exported_fp32.bundle.folder, folder)
    return Bundle(folder, exported_fp32.bundle.manifest)


@pytest.fixture(scope="module")
def half(
    exported_fp32: Exported, tmp_path_factory: pytest.TempPathFactory, pair_settings: ExportSettings
) -> Bundle:
    """The same in FP16."""
    from exported import export_once

    settings = replace(exported_fp32.settings, precision="fp16", verify="quick")
    return export_once(tmp_path_factory, "both-fp16", settings).bundle


def whole(bundle: Bundle, feeds: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Scores of the graph as one, on ONNX Runtime."""
    graph = bundle.manifest.graphs["matrix_scorer"]
    return OnnxRuntimeEngine(bundle.path(graph.file), graph).run(feeds)["score"]


def fed(bundle: Bundle, rows: int, texts: int, tokens: int) -> dict[str, NDArray[np.float32]]:
    feeds = draw_feeds(bundle, "matrix_scorer", {"I": rows, "T": texts, "L": max(tokens, 3)})
    if tokens < 3:
        feeds["token_mask"] = np.ones((texts, tokens), np.float32)
    return feeds


# The cut


@pytest.mark.parametrize("size", SIZES)
def test_walk_and_match_are_the_whole_graph(full: Bundle, size: tuple[int, int, int]) -> None:
    feeds = fed(full, *size)
    given = Half(full, "walk").run(feeds)
    (scores,) = Half(full, "match").run({**feeds, **given}).values()
    np.testing.assert_allclose(scores, whole(full, feeds), rtol=0, atol=1e-5)


def test_walk_and_match_are_the_formula(tmp_path: Path) -> None:
    path = write_attention(tmp_path / "plain.onnx")
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    cut = CutGraph(model.SerializeToString(), ["text_states", "token_mask"])
    walk, match = (onnx.load_from_string(it) for it in cut.halves(["score"]))
    assert [it.name for it in walk.graph.output] == ["queries"]  # numbers alone, and no sizes
    assert {it.name for it in match.graph.input} == {
        *("queries", "text_states", "token_mask", "latent")  # whose shape the match reads
    }
    assert "Softmax" not in {node.op_type for node in walk.graph.node}
    feeds = feeds_of(5, 7, 16)
    for part in (walk, match):
        session = open_session(
            path, session_options(1), frugal=False, part=part.SerializeToString()
        )
        names = [it.name for it in session.get_outputs()]
        inputs = {it.name: feeds[it.name] for it in session.get_inputs()}
        feeds |= dict(zip(names, session.run(names, inputs), strict=True))
    np.testing.assert_allclose(feeds["score"], by_formula(feeds), rtol=1e-5, atol=1e-5)


def test_the_walk_has_the_unet_and_the_match_has_none_of_it(full: Bundle) -> None:
    walk, match = (onnx.load_from_string(Half(full, part).content).graph for part in PARTS)
    assert {node.op_type for node in walk.node} >= {"Conv", "Resize"}
    assert not {node.op_type for node in match.node} & {"Conv", "Resize"}
    # What both compute are sizes.
    both = {node.output[0] for node in walk.node} & {node.output[0] for node in match.node}
    noted = {it.name: it.type.tensor_type.elem_type for it in whole_graph(full).value_info}
    assert {noted[it] for it in both} <= {onnx.TensorProto.INT64}


def whole_graph(bundle: Bundle) -> onnx.GraphProto:
    path = bundle.path(bundle.manifest.graphs["matrix_scorer"].file)
    return onnx.load(path, load_external_data=False).graph


def test_a_graph_that_does_not_describe_its_values_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", matrix=True)
    path = bundle.path("matrix_scorer.onnx")
    model = onnx.load(path)
    del model.graph.value_info[:]
    onnx.save(model, path)
    with pytest.raises(GraphRefusedError, match=r"no type and shape of the value.*Export .* again"):
        read_source(tensorrt_rtx, bundle, "matrix_scorer", "walk", BATCHES)


# Building, by the real parser and builder


@pytest.mark.parametrize("part", PARTS)
def test_profiles_are_the_shapes_that_onnxruntime_gives(full: Bundle, part: Part) -> None:
    source = read_source(tensorrt_rtx, full, "matrix_scorer", part, BATCHES)
    inputs = {it.name: it for it in Half(full, part).graph.inputs}
    specs = {it.name: it for it in full.manifest.graphs["matrix_scorer"].inputs}
    for profile, rows in zip(source.profiles, BATCHES, strict=True):
        assert profile.keys() == inputs.keys()
        for i, count in enumerate((rows.min, rows.opt, rows.max)):
            known = shapes_at_the_cut(full, count)
            if source.texts is not None and source.tokens is not None:
                texts = (source.texts.min, source.texts.opt, source.texts.max)[i]
                tokens = (source.tokens.min, source.tokens.opt, source.tokens.max)[i]
                sizes = {"I": count, "T": texts, "L": tokens}
                known |= {name: it.of_sizes(sizes) for name, it in specs.items()}
            assert {name: shapes[i] for name, shapes in profile.items()} == {
                name: tuple(known[name]) for name in profile
            }
    assert (source.texts is None) == (part == "walk")


def test_texts_are_as_many_as_a_map_has_room_for(full: Bundle) -> None:
    # 64 image tokens at the top, two heads, 77 text tokens.
    a_pair = 64 * 2 * 77
    assert texts_at_once(full.manifest, 1).max == 256
    for rows in (32, 100, 2000, 10**6):
        texts = texts_at_once(full.manifest, rows).max
        assert texts == 1 or texts * rows * a_pair <= 2**25
        assert (texts + 1) * rows * a_pair > 2**25


def test_the_matrix_scorer_becomes_two_plans(full: Bundle) -> None:
    stages: list[str] = []
    built = list(
        build_plans(full, "tensorrt-rtx", SETTINGS, ["matrix_scorer"], stage=stages.append)
    )
    assert stages == ["matrix_scorer (walk)", "matrix_scorer (match)"]
    walk, match = (plan for plan, _ in built)
    assert [plan.sidecar.part for plan in (walk, match)] == list(PARTS)
    assert [plan.sidecar.texts for plan in (walk, match)] == [None, Profile(1, 256, 256)]
    assert match.sidecar.tokens == Profile(1, 16, 77)
    for plan in (walk, match):
        assert open_plan(plan.folder) == plan
        assert plan.path.stat().st_size == plan.sidecar.size > 10_000
        assert plan.sidecar.graph_hash == full.manifest.graph_hash("matrix_scorer")
    found = find_plans(full.folder, full.manifest, "matrix_scorer", "tensorrt-rtx", VERSION, "8.6")
    assert found == (walk, match)
    facts = BundleFacts.read(full.folder, verify=True)
    assert {it.described.title for it in facts.plans} == {*stages}
    assert facts.faults == ()
    shown = CliRunner().invoke(cli, ["inspect", str(full.folder)]).output
    for title in ("matrix_scorer (walk) for", "matrix_scorer (match) for", "texts 1,256,256"):
        assert title in " ".join(shown.split())
    Scorer.load(full.folder, engine="onnxruntime")  # the bundle still verifies


@pytest.mark.parametrize("part", PARTS)
def test_polygraphy_finds_each_part_supported(full: Bundle, part: Part) -> None:
    path = full.folder / f"{part}.onnx"  # beside the weights
    path.write_bytes(Half(full, part).content)
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("polygraphy"), "inspect", "capability", path),
        ],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
    )
    path.unlink()
    assert done.returncode == 0, done.stderr
    assert "Graph is fully supported by TensorRT" in done.stdout


@pytest.mark.slow
def test_scores_are_fp32_and_the_bulk_is_fp16(half: Bundle) -> None:
    layers = len(half.manifest.method.score_layers)
    for part in PARTS:
        source = read_source(tensorrt_rtx, half, "matrix_scorer", part, BATCHES)
        table = LayerTable.of(source.network)
        check_precision(table, half.manifest, "matrix_scorer", part)
        assert table.half_share(layers) == 1
        if part == "match":
            scoring = table.scoring()
            assert {it.dtype for it in scoring if it.dtype in ("FLOAT", "HALF")} == {"FLOAT"}
            assert sum(it.kind == "MATRIX_MULTIPLY" for it in scoring) == layers
        else:  # attention to the unconditional text, in every scored layer that is passed
            wide = [it.logits for it in table.attentions() if it.logits.dtype == "FLOAT"]
            assert len(wide) == layers - 1


@pytest.mark.parametrize("operator", ["MatMul", "Softmax", "Exp", "Log"])
def test_a_planted_cast_among_the_scores_is_caught(full: Bundle, operator: str) -> None:
    half = Half(full, "match")
    model = onnx.load_from_string(half.content)
    model.graph.value_info.extend(
        it for it in whole_graph(full).value_info if it.type.tensor_type.elem_type == 1
    )
    plant(model, operator)
    del model.graph.value_info[:]
    path = full.path("matrix_scorer.onnx")
    table = LayerTable.of(parse_part(tensorrt_rtx, model.SerializeToString(), path))
    with pytest.raises(LayerPrecisionError, match=f"{operator}.* is HALF"):
        check_precision(table, full.manifest, "matrix_scorer", "match")


# Running


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_module, "cudart", fake)
    return fake


@pytest.fixture
def planned(full: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the tiny model's bundle without plans."""
    shutil.copytree(full.folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    return Bundle(tmp_path / "b", full.manifest)


def opened(
    bundle: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> tuple[TensorRTMatrixEngine, PlansOnCpu]:
    library = PlansOnCpu(cuda, bundle, BATCHES)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    engine = TENSORRT.open(bundle, "matrix_scorer")
    assert isinstance(engine, TensorRTMatrixEngine)
    return engine, library


def test_any_sizes_give_the_whole_graphs_scores(
    planned: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plans(planned, BATCHES)
    engine, library = opened(planned, cuda, monkeypatch)
    for size in [*SIZES, (1, 13, 77), (8, 9, 33), (13, 2, 16)]:
        feeds = fed(planned, *size)
        expected = whole(planned, feeds)
        for _ in range(2):  # run, recorded
            np.testing.assert_allclose(engine.run(feeds)["score"], expected, rtol=0, atol=1e-5)
    assert library.opened.keys() == {*PARTS}


def test_a_row_is_walked_once_whatever_the_number_of_texts(
    planned: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plans(planned, BATCHES)
    engine, library = opened(planned, cuda, monkeypatch)
    feeds = fed(planned, 8, 20, 16)
    for _ in range(3):
        engine.run(feeds)
    # Six rows and two, by the profile that fits; each shape is enqueued twice: run and recorded.
    assert library.opened["walk"].enqueued == [(1, 6), (1, 6), (0, 2), (0, 2)]
    # Texts by six, and two that are left, for both numbers of rows.
    assert len(library.opened["match"].enqueued) == 2 * 2 * 2
    assert (
        cuda.calls.count("cudaGraphLaunch")
        == 3 * 2 * (1 + 4)
        - len(library.opened["walk"].enqueued + library.opened["match"].enqueued) // 2
    )


def test_rows_and_texts_below_the_least_are_filled_up(
    planned: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (Profile(4, 5, 6),)
    write_plans(planned, rows)
    library = PlansOnCpu(cuda, planned, rows)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    feeds = fed(planned, 2, 3, 16)
    scores = TENSORRT.open(planned, "matrix_scorer").run(feeds)["score"]
    np.testing.assert_allclose(scores, whole(planned, feeds), rtol=0, atol=1e-5)
    assert {count for _, count in library.opened["walk"].enqueued} == {4}


def test_time_is_that_of_all_walks_and_matches(
    planned: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plans(planned, BATCHES)
    engine, _ = opened(planned, cuda, monkeypatch)
    cuda.milliseconds = 30.0
    cuda.calls.clear()
    feeds = fed(planned, 7, 8, 16)  # two walks, each with two matches
    engine.run(feeds)
    cuda.calls.clear()
    assert engine.time(feeds, repeats=5) == pytest.approx(30e-3)
    assert cuda.calls.count("cudaGraphLaunch") == 6 * (1 + 5)


def test_everything_is_freed(
    planned: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plans(planned, BATCHES)
    engine, _ = opened(planned, cuda, monkeypatch)
    engine.run(fed(planned, 2, 3, 16))
    before = cuda.used("device")
    engine.run(fed(planned, 13, 20, 77))
    assert cuda.used("device") == before  # memory is there for the most, from the start
    engine.close()
    gc.collect()
    assert (cuda.memory, cuda.queues, cuda.events, cuda.graphs) == ({}, {}, {}, {})


def test_recorded_passes_make_room_for_others(
    planned: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsd_trt.engine.tensorrt.loaded._KEPT", 2)
    write_plans(planned, BATCHES)
    engine, _ = opened(planned, cuda, monkeypatch)
    for rows in (1, 2, 3, 1):
        feeds = fed(planned, rows, 2, 16)
        np.testing.assert_allclose(
            engine.run(feeds)["score"], whole(planned, feeds), rtol=0, atol=1e-5
        )
    gc.collect()
    assert len(cuda.graphs) <= 2 * 2 + 2  # and the passes of the last run


# Refusing


def test_what_is_missing_or_does_not_fit_is_named(
    planned: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal() -> str:
        with pytest.raises(EngineError) as caught:
            opened(planned, cuda, monkeypatch)
        return str(caught.value)

    assert "has no tensorrt plan of its matrix_scorer (walk). Build one: dsd-trt build" in refusal()
    walk, match = write_plans(planned, BATCHES, graphs=["matrix_scorer"])
    shutil.rmtree(match.folder)
    assert "has no tensorrt plan of its matrix_scorer (match)" in refusal()
    _, other = write_plans(planned, BATCHES[:1], graphs=["matrix_scorer"])
    assert "takes batches 1,2,3, and the plan before it 1,2,3; 4,5,6. Build again" in refusal()
    shutil.rmtree(other.folder)
    _, match = write_plans(planned, BATCHES, graphs=["matrix_scorer"])
    match.path.write_bytes(b"x" * match.sidecar.size)
    assert "was altered" in refusal()
    for changes, said in (
        ({"version": "11.4.0"}, "was built with tensorrt 11.4.0, here is 10.13.3"),
        ({"compute_capabilities": ("9.0",)}, "compute capability 9.0, this one has 8.6"),
        ({"graph_hash": "0" * 64}, "the bundle has changed since"),
    ):
        shutil.rmtree(planned.folder / "engines")
        write_plans(planned, BATCHES, graphs=["matrix_scorer"], **changes)
        assert said in refusal()
    assert walk.sidecar.part == "walk"


def test_parts_of_another_graph_are_refused(
    planned: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plans(planned, BATCHES)
    graph = planned.manifest.graphs["matrix_scorer"]
    states = replace(graph.inputs[2], shape=("T", 77, 5))
    other = replace(graph, inputs=(*graph.inputs[:2], states, graph.inputs[3]))
    library = PlansOnCpu(cuda, planned, BATCHES)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    graphs = {**planned.manifest.graphs, "matrix_scorer": other}
    manifest = replace(planned.manifest, graphs=graphs)
    declared = Bundle(planned.folder, manifest)
    with pytest.raises(EngineError, match=r"has .*text_states.* where its bundle says .*text_st"):
        TENSORRT.open(declared, "matrix_scorer")


def test_a_bundle_with_pair_plans_alone_has_no_matrix_mode_on_tensorrt(
    planned: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plans(planned, BATCHES, graphs=["image_encoder", "text_encoder", "pair_scorer"])
    monkeypatch.setitem(sys.modules, "tensorrt", PlansOnCpu(cuda, planned, BATCHES))
    with pytest.raises(EngineError, match=r"no tensorrt plan of its matrix_scorer \(walk\)"):
        Scorer.load(planned.folder, engine="tensorrt", mode="matrix", self_check=False)
    monkeypatch.setattr("dsd_trt.engine.tensorrt.backend.why_no_driver", lambda: None)
    why = TENSORRT.why_not(planned, ("matrix_scorer",))
    assert why is not None
    assert "matrix_scorer (walk)" in why
    assert TENSORRT.why_not(planned, ("pair_scorer",)) is None


@pytest.mark.parametrize("part", [None, "walk"])
def test_a_sidecar_with_texts_that_is_no_match_is_refused(tmp_path: Path, part: str | None) -> None:
    bundle = make_bundle(tmp_path / "bundle", matrix=True)
    changes: dict[str, Any] = {"part": part, "texts": Profile(1, 2, 3)}
    (plan,) = write_plans(bundle, BATCHES, graphs=["pair_scorer"], **changes)
    with pytest.raises(EngineError, match="field 'texts' belongs to the part 'match'"):
        open_plan(plan.folder)


def test_building_what_the_bundle_lacks_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match="no graph 'matrix_scorer'"):
        list(build_plans(bundle, "tensorrt-rtx", SETTINGS, ["matrix_scorer"]))
