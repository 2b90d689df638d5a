"""PyTorch beside an engine of a GPU, on the CPU: the same scores, and what becomes of failures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dsd_trt import Bundle
from dsd_trt.bundle.contract import Precision
from dsd_trt.engine.onnxruntime.cpu import CPU
from dsd_trt.engines.gpu_check.feeds import draw_feeds
from dsd_trt.engines.gpu_check.figures import Gpu, Run, Timing
from dsd_trt.engines.gpu_check.recorder import Recorder
from dsd_trt.engines.gpu_check.report import GpuReport
from dsd_trt.errors import InputError
from dsd_trt.export.benchmark import gpu_peers as module
from dsd_trt.export.benchmark.gpu_peers import (
    COMPILED,
    EAGER,
    GRAPH,
    MATRIX_EAGER,
    SDPA,
    clock,
    measure_peers,
    read_recipe,
)
from dsd_trt.export.commands.gpu_check import _count_macs
from dsd_trt.export.recipe import Recipe

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)

HERE = torch.device("cpu")
SMALL = {"I": 2, "T": 3, "L": 16}


def in_precision(bundle: Bundle, precision: Precision) -> Bundle:
    """The bundle as one of another precision, as far as its manifest goes."""
    manifest = bundle.manifest
    graphs = manifest.contract(precision)
    return replace(bundle, manifest=replace(manifest, precision=precision, graphs=graphs))


def start(bundle: Bundle, scores: tuple[float, ...] = ()) -> Recorder:
    gpu = Gpu(0, "none", "0.0", 1, None, None)
    precision = bundle.manifest.precision
    return Recorder(
        GpuReport("", "", "", gpu, "", {}, "tiny", precision, "", scores=scores, used="plain")
    )


@pytest.fixture
def recipe(exported_fp32: Exported) -> Recipe:
    settings = exported_fp32.settings
    return read_recipe(exported_fp32.bundle, settings.model, settings.adapter)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_contenders_compute_the_bundles_scores(
    exported_fp32: Exported, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Peers, "compiled", lambda self, scoring, batches: None)
    exported, settings = exported_fp32.bundle, exported_fp32.settings
    engine = CPU.open(exported, "pair_scorer")
    expected = engine.run(draw_feeds(exported, "pair_scorer", {"B": 3}))["score"]
    bundle = in_precision(exported, precision)
    recipe = read_recipe(bundle, settings.model, settings.adapter)
    assert recipe.settings.precision == precision
    steps = start(bundle, tuple(map(float, expected)))
    macs = _count_macs(exported)
    measure_peers(
        steps, bundle, recipe, HERE, (1, 3, 3), macs=macs, matrix_sizes=SMALL, repeats=1, side=64
    )
    report = steps.report
    assert report.peers.keys() == {EAGER, SDPA, MATRIX_EAGER}
    for name in (EAGER, SDPA):
        peer = report.peers[name]
        assert [(it.graph, it.rows) for it in peer.timings] == [
            ("pair_scorer", 1),
            ("pair_scorer", 3),
        ]
        assert all(it.tflops for it in peer.timings)
        assert peer.max_difference is not None
        assert peer.max_difference < (1e-5 if precision == "fp32" else 5e-3)
    (walk,) = report.peers[MATRIX_EAGER].timings
    assert (walk.graph, walk.batch) == ("matrix_scorer", "2 x 3")
    assert report.peak_tflops["torch"] > 0
    # A CPU has none, which costs the others nothing.
    assert report.peer_failures.keys() == {f"{GRAPH}, batch 1", f"{GRAPH}, batch 3"}
    assert "records no CUDA graphs" in report.peer_failures[f"{GRAPH}, batch 1"]


@pytest.mark.slow  # tracing takes most of a minute
def test_the_compiled_contender_computes_the_bundles_scores(
    exported_fp32: Exported, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the compiler's last step, which takes minutes on a CPU.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    bundle = exported_fp32.bundle
    expected = CPU.open(bundle, "pair_scorer").run(draw_feeds(bundle, "pair_scorer", {"B": 2}))
    steps = start(bundle, tuple(map(float, expected["score"])))
    peers = module._Peers(steps, bundle, HERE, None, 1)
    with torch.no_grad():
        peers.compiled(module._scoring(recipe, HERE), (2,))
    peer = steps.report.peers[COMPILED]
    assert [it.rows for it in peer.timings] == [2]
    assert peer.seconds_to_prepare > 0
    assert peer.max_difference is not None
    assert peer.max_difference < 1e-5


def test_matrix_mode_computes_the_bundles_scores(exported_fp32: Exported, recipe: Recipe) -> None:
    bundle = exported_fp32.bundle
    feeds = draw_feeds(bundle, "matrix_scorer", SMALL)
    expected = CPU.open(bundle, "matrix_scorer").run(feeds)["score"]
    with torch.no_grad():
        got = module._matrix(recipe, HERE)(*map(torch.from_numpy, feeds.values()))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_a_contender_that_fails_is_a_line(
    exported_fp32: Exported, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(torch.export, "export", fail)
    monkeypatch.setattr(module, "_matrix", fail)
    monkeypatch.setattr(module._Peers, "product", fail)
    steps = start(exported_fp32.bundle)
    measure_peers(steps, exported_fp32.bundle, recipe, HERE, (2,), matrix_sizes=SMALL, repeats=1)
    report = steps.report
    assert report.peers[EAGER].timings
    assert report.peers[SDPA].timings
    assert report.peers[EAGER].max_difference is None  # the engine has no scores of this batch
    failed = {f"{COMPILED}, batch 2", MATRIX_EAGER, "large product"}
    assert failed < report.peer_failures.keys()
    for name in failed:
        assert report.peer_failures[name] == (
            "OutOfMemoryError: CUDA out of memory. Tried to allocate"
        )


def test_batches_are_those_the_engine_was_timed_with(
    exported_fp32: Exported, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[str, Mapping[str, int]]] = []
    monkeypatch.setattr(
        module._Peers, "_note", lambda self, name, graph, sizes, run: timed.append((name, sizes))
    )
    monkeypatch.setattr(module._Peers, "compiled", lambda self, scoring, batches: None)
    steps = start(exported_fp32.bundle)
    steps.note_run("plain", timings=tuple(Timing.of("pair_scorer", 1, {"B": it}) for it in (2, 5)))
    assert isinstance(steps.report.run, Run)
    measure_peers(steps, exported_fp32.bundle, recipe, HERE, (1, 8, 32), repeats=1, side=64)
    assert [sizes["B"] for name, sizes in timed if name == SDPA] == [2, 5]


def test_another_checkpoint_is_refused(exported_fp32: Exported) -> None:
    with pytest.raises(InputError, match=r"--model shapes: its image_encoder takes .*the bundle's"):
        read_recipe(exported_fp32.bundle, "shapes", None)


def test_the_settings_are_those_of_the_bundle(exported_fp32: Exported, recipe: Recipe) -> None:
    manifest = exported_fp32.bundle.manifest
    ours, theirs = recipe.manifest.method, manifest.method
    assert replace(ours, layer_names=theirs.layer_names) == theirs
    assert recipe.manifest.matrix == manifest.matrix
    assert {name: graph.inputs for name, graph in recipe.manifest.graphs.items()} == {
        name: graph.inputs for name, graph in manifest.graphs.items()
    }


def test_macs_of_a_batch(exported_fp32: Exported) -> None:
    from dsd_trt.export.benchmark.macs import count_macs

    bundle = exported_fp32.bundle
    count = _count_macs(bundle)
    assert count is not None
    for name, sizes in (("pair_scorer", {"B": 3}), ("matrix_scorer", SMALL)):
        graph = bundle.manifest.graphs[name]
        assert count(name, sizes) == count_macs(bundle.path(graph.file), graph, **sizes) > 0


def test_the_clock_takes_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    durations = iter([9.0, 9.0, 9.0, 1.0, 5.0, 2.0])  # the first three are the warm-up

    def run() -> None:
        now[0] += next(durations)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert clock(run, HERE, 3) == 2.0


def test_a_folder_that_is_no_adapter(exported_fp32: Exported, tmp_path: Path) -> None:
    from dsd_trt.errors import DsdError

    with pytest.raises(DsdError):
        read_recipe(exported_fp32.bundle, exported_fp32.settings.model, tmp_path)
