"""OpenVINO cuts batches: into parts of fixed sizes, several at once."""

from __future__ import annotations

import locale
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from bundles import make_bundle
from matrix_graphs import of_fixed_sizes
from numpy.typing import NDArray
from openvino import opset13 as ops

from dsd_trt import Bundle, Scorer
from dsd_trt.engine.onnxruntime.cpu import OnnxRuntimeEngine
from dsd_trt.engine.openvino.cut import lift_attention, split
from dsd_trt.engine.openvino.graph import OpenVinoGraph
from dsd_trt.engine.openvino.matrix import OpenVinoMatrixEngine
from dsd_trt.engine.openvino.runner import OpenVinoEngine


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def feeds_of(graph: Any, count: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(count)
    feeds: dict[str, NDArray[Any]] = {}
    for spec in graph.inputs:
        shape = spec.of_batch(count)
        if spec.dtype == "float32":
            feeds[spec.name] = rng.normal(size=shape).astype(np.float32)
        else:
            feeds[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
    feeds["token_mask"] = np.ones_like(feeds["token_mask"])
    return feeds


@pytest.mark.parametrize(("threads", "large"), [(1, False), (3, False), (100, False), (2, True)])
def test_every_item_gets_its_own_result(
    bundle: Bundle, threads: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsd_trt.engine.openvino.graph.thread_limit", lambda: threads)
    graph = bundle.manifest.graphs["pair_scorer"]
    path = Path(bundle.path(graph.file))
    ours, other = OpenVinoEngine(path, graph, large=large), OnnxRuntimeEngine(path, graph)
    for count in (33, 1, 32, 31, 70, 3):
        feeds = feeds_of(graph, count)
        found, wanted = ours.run(feeds), other.run(feeds)
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            assert np.abs(values).max() > 0
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)


def test_what_a_run_returned_stays_as_it_was(bundle: Bundle) -> None:
    graph = bundle.manifest.graphs["pair_scorer"]
    engine = OpenVinoEngine(bundle.path(graph.file), graph)
    first = engine.run(feeds_of(graph, 32))["score"]
    kept = first.copy()
    assert not np.array_equal(engine.run(feeds_of(graph, 33))["score"][:32], kept)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("large", [False, True])
def test_files_that_change_after_opening_have_no_effect(
    bundle: Bundle, tmp_path: Path, large: bool
) -> None:
    """Only what was verified computes, also in batches that are compiled later."""
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    graph = bundle.manifest.graphs["pair_scorer"]
    engine = OpenVinoEngine(folder / graph.file, graph, large=large)
    feeds = feeds_of(graph, 33)
    wanted = OpenVinoEngine(bundle.path(graph.file), graph, large=large).run(feeds)["score"]
    for file in folder.iterdir():
        if file.suffix in (".onnx", ".data"):
            shutil.copyfile(bundle.path("text_encoder.onnx"), folder / "other")
            (folder / "other").replace(file)
    assert np.ptp(wanted) > 0.01
    np.testing.assert_array_equal(engine.run(feeds)["score"], wanted)


def test_the_locale_is_left_as_it_was(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs that are compiled in several threads at once leave it changed, or never return."""
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path))
    before = locale.setlocale(locale.LC_ALL)
    for _ in range(5):
        Scorer.load(bundle.folder, "openvino")
        assert locale.setlocale(locale.LC_ALL) == before


# The matrix scorer, cut in two


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "matrix", matrix=True)


@pytest.mark.parametrize("large", [False, True])
def test_every_row_meets_every_text(matrix: Bundle, large: bool) -> None:
    graph = matrix.manifest.graphs["matrix_scorer"]
    path = Path(matrix.path(graph.file))
    ours, other = OpenVinoMatrixEngine(path, graph, large=large), OnnxRuntimeEngine(path, graph)
    rng = np.random.default_rng(0)
    for rows, texts, width in ((1, 1, 16), (21, 33, 16), (4, 16, 77), (37, 2, 32)):
        sizes = {"I": rows, "T": texts, "L": width}
        shapes = {
            it.name: [n if isinstance(n, int) else sizes[n] for n in it.shape]
            for it in graph.inputs
        }
        feeds: dict[str, NDArray[Any]] = {
            name: rng.normal(size=shapes[name]).astype(np.float32)
            for name in ("latent", "text_states")
        }
        feeds["level"] = rng.integers(0, 2, rows).astype(np.int32)
        feeds["token_mask"] = rng.integers(0, 2, (texts, width)).astype(np.float32)
        feeds["token_mask"][:, 0] = 1
        found, wanted = ours.run(feeds)["score"], other.run(feeds)["score"]
        assert found.shape == wanted.shape == (rows, texts)
        assert wanted.std() > 0.01 or wanted.size == 1
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_walk_of_a_large_model_is_compiled_once(
    matrix: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nearly all weights: whatever the numbers of rows and texts, they are held once."""
    parts: list[object] = []
    compile_before = OpenVinoGraph.compile

    def compiling(self: OpenVinoGraph, model: Any, part: int | str, **settings: Any) -> Any:
        parts.append(part)
        return compile_before(self, model, part, **settings)

    monkeypatch.setattr(OpenVinoGraph, "compile", compiling)
    graph = matrix.manifest.graphs["matrix_scorer"]
    engine = OpenVinoMatrixEngine(Path(matrix.path(graph.file)), graph, large=True)
    assert parts.count("walk 1") == 1
    rng = np.random.default_rng(0)
    for rows, width in ((1, 16), (5, 32)):
        shapes = {spec.name: spec.shape for spec in graph.inputs}
        sizes = {"I": rows, "T": 2, "L": width}
        feeds: dict[str, NDArray[Any]] = {
            name: rng.normal(
                size=[it if isinstance(it, int) else sizes[it] for it in shapes[name]]
            ).astype(np.float32)
            for name in ("latent", "text_states")
        }
        feeds["level"] = np.zeros(rows, np.int32)
        feeds["token_mask"] = np.ones((2, width), np.float32)
        assert np.isfinite(engine.run(feeds)["score"]).all()
    assert [it for it in parts if "walk" in str(it)] == ["walk 1"]
    assert len(parts) > 3  # and matches for each number of rows and tokens


def test_rows_are_walked_once_and_nothing_of_the_texts_is(matrix: Bundle) -> None:
    walk, match = split(of_fixed_sizes(matrix), 2)
    assert [port.get_any_name() for port in walk.inputs] == ["latent", "level"]
    assert [port.get_any_name() for port in match.inputs[-2:]] == ["text_states", "token_mask"]
    assert all(port.get_shape()[0] == 3 for port in walk.outputs)
    assert len(match.inputs) == len(walk.outputs) + 2
    kinds = [{node.get_type_name() for node in part.get_ordered_ops()} for part in (walk, match)]
    assert "ReduceMean" in kinds[0] - kinds[1]  # of the latent's pixels
    assert "Tanh" in kinds[1] - kinds[0]  # of logits


def test_what_has_no_attention_is_left_as_it_was(matrix: Bundle) -> None:
    match = split(of_fixed_sizes(matrix), 2)[1]
    before = [node.get_friendly_name() for node in match.get_ordered_ops()]
    lifted = lift_attention(match)
    assert lifted.layers == []
    assert lifted.parts == [match]
    assert [node.get_friendly_name() for node in match.get_ordered_ops()] == before


def attention(
    *,
    start: int = 0,
    step: int = 1,
    over: int = 4,
    lam: object = 20.0,
    softmax: int = 2,
    less: float = 1.0,
    columns: int = 3,
    flip: bool = False,
) -> ov.Model:
    """Of 2 heads, 3 texts, and 4 text tokens, images and image tokens: shapes tell little."""
    queries, keys = ops.parameter([2, 8, 16]), ops.parameter([2, 12, 8])
    logits = ops.reshape(ops.matmul(keys, queries, False, False), [2, 3, 4, 16], False)
    counted = ops.slice(ops.softmax(logits, softmax), [start], [4], [step], [2])
    count = counted.get_output_shape(0)[2]
    apart = ops.reshape(counted, [2, 3, count, 4, 4], False)
    sharp = ops.exp(ops.multiply(apart, np.array(lam, np.float32)))
    basis = np.ones((columns, 4) if flip else (4, columns), np.float32)
    moments = ops.matmul(ops.subtract(sharp, np.float32(less)), basis, False, flip)
    pooled = ops.log(ops.reduce_mean(sharp, [over]))
    return ov.Model([pooled, ops.relu(moments)], [queries, keys])


@pytest.mark.parametrize(
    "other",
    [
        {"start": 1},
        {"step": 2},
        {"over": 3},
        {"lam": 65.0},
        {"lam": [1.0, 2, 3, 4]},
        {"softmax": 3},
    ],
)
def test_other_attention_than_the_kernel_computes_is_left_in(other: dict[str, Any]) -> None:
    assert lift_attention(attention()).layers[0].lam == 20.0
    assert len(lift_attention(attention()).parts) == 2
    assert lift_attention(attention(), lift=False).layers == []
    assert lift_attention(attention(**other)).layers == []


@pytest.mark.parametrize("other", [{"less": 0.5}, {"columns": 2}, {"flip": True}])
def test_other_moments_than_the_kernel_sums_are_left_in(other: dict[str, Any]) -> None:
    for settings, lifted in (({}, True), (other, False)):
        made = lift_attention(attention(**settings))
        (layer,) = made.layers
        assert (layer.moments is not None) == lifted
        kinds = {node.get_type_name() for node in made.parts[1].get_ops()}
        assert ("Softmax" in kinds) != lifted


SCORE_WITH = """
import sys
sys.path.insert(0, sys.argv[1])
from dsd_trt import EngineError, Scorer
try:
    Scorer.load(sys.argv[2], "openvino").close()
except EngineError as error:
    print(error)
else:
    import openvino
    print("opened with", openvino.__file__)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's libraries")
@pytest.mark.parametrize(
    "name",
    [
        "_pyopenvino*.so",
        "libs/libopenvino.so.*",
        "libs/libopenvino_intel_cpu_plugin.so",
        "libs/libopenvino_onnx_frontend.so.*",
        "libs/libopenvino_tensorflow_frontend.so.*",
        "libs/libtbb.so.*",
        "libs/libopenvino_auto_plugin.so",  # which is not loaded
    ],
)
def test_a_package_that_is_cut_short(name: str, bundle: Bundle, tmp_path: Path) -> None:
    """Loading half a library ends a process with a bus error."""
    package, copy = Path(ov.__file__).parent, tmp_path / "openvino"
    shutil.copytree(package, copy, copy_function=os.symlink)
    (library,) = copy.glob(name)
    content = library.read_bytes()
    library.unlink()
    library.write_bytes(content[: len(content) // 2])
    done = subprocess.run(
        [sys.executable, "-c", SCORE_WITH, tmp_path, bundle.folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if "auto" in name:
        assert done.stdout == f"opened with {copy / '__init__.py'}\n"
        return
    start = f"openvino is incomplete ({library} is cut short: it has {len(content) // 2} bytes, "
    assert done.stdout.startswith(start)
    assert re.search(r"Again: .*pip install --force-reinstall .*\[openvino\]'$", done.stdout)
