"""ONNX Runtime cuts the matrix scorer: rows are walked once, texts matched a few at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from attention_graph import GRAPH, by_formula, feeds_of, write_attention

from dsd_trt.engine import pooled_attention
from dsd_trt.engine.onnxruntime.cpu import open_session, run_session
from dsd_trt.engine.onnxruntime.matrix import OnnxRuntimeMatrixEngine
from dsd_trt.engine.openvino.matrix import OpenVinoMatrixEngine
from dsd_trt.errors import EngineError

CENTRES: list[dict[str, Any]] = [  # that of relations, and others
    {"centres": True},
    {"centres": True, "less": 0.5},
    {"centres": True, "columns": 2},
    {"centres": True, "columns": 4},
]
ROWS, TEXTS = {"latent", "level"}, {"text_states", "token_mask"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_attention(tmp_path / "matrix_scorer.onnx")


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("parts", [{}, {"branch": True}, *CENTRES], ids=str)
@pytest.mark.parametrize(
    ("rows", "texts", "width"), [(1, 1, 1), (5, 17, 16), (21, 3, 40), (16, 33, 32)]
)
def test_it_is_the_formula(
    kernel: bool,
    parts: dict[str, Any],
    rows: int,
    texts: int,
    width: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not kernel:  # maps, of at most seven texts with 16 rows
        monkeypatch.setattr("dsd_trt.engine.pooled_attention.available", lambda: False)
        monkeypatch.setattr("dsd_trt.engine.onnxruntime.matrix.NUMBERS", 7 * 2 * 40 * 16 * 6)
    path = write_attention(tmp_path / "scorer.onnx", **parts)
    engine, feeds = OnnxRuntimeMatrixEngine(path, GRAPH, threads=2), feeds_of(rows, texts, width)
    found, expected = engine.run(feeds)["score"], by_formula(feeds, **parts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1 or expected.size == 1


@pytest.mark.parametrize("parts", [{}, *CENTRES], ids=str)
def test_both_engines_that_cut_agree(parts: dict[str, Any], tmp_path: Path) -> None:
    feeds, path = feeds_of(7, 18, 40), write_attention(tmp_path / "scorer.onnx", **parts)
    found = OnnxRuntimeMatrixEngine(path, GRAPH).run(feeds)["score"]
    expected = OpenVinoMatrixEngine(path, GRAPH).run(feeds)["score"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not pooled_attention.available(), reason="the kernel was not compiled")
def test_the_kernel_takes_the_place_of_the_maps(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = opened(monkeypatch, path)
    assert len(parts) == 3
    walk, keys, scores = ({node.op_type for node in it.graph.node} for it in parts)
    assert "Softmax" not in walk | keys | scores
    assert "MatMul" in keys - scores
    assert "Log" in scores - keys


@pytest.mark.skipif(not pooled_attention.available(), reason="the kernel was not compiled")
def test_moments_that_the_kernel_sums_leave_no_map_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = []
    for name, parts in zip(("usual", *"abc"), CENTRES, strict=True):
        path = write_attention(tmp_path / f"{name}.onnx", **parts)
        _, keys, scores = opened(monkeypatch, path)
        assert "Softmax" not in {node.op_type for node in keys.graph.node}
        kinds.append({node.op_type for node in scores.graph.node})
    assert not {"Softmax", "Exp", "MatMul"} & kinds[0]
    # Other moments need the maps, which are then made beside the kernel.
    assert all({"Softmax", "Exp", "MatMul"} <= it for it in kinds[1:])


@pytest.mark.skipif(not pooled_attention.available(), reason="the kernel was not compiled")
@pytest.mark.parametrize(("parts", "most"), [(CENTRES[0], 16), (CENTRES[1], 7)])
def test_maps_that_are_made_beside_the_kernel_have_few_texts(
    parts: dict[str, Any], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []

    def run(session: Any, outputs: Any, feeds: Any) -> Any:
        if outputs == ["score"]:
            texts.append(len(feeds["text_states"]))
        return run_session(session, outputs, feeds)

    monkeypatch.setattr("dsd_trt.engine.onnxruntime.matrix.NUMBERS", 7 * 2 * 40 * 4 * 6)
    monkeypatch.setattr("dsd_trt.engine.onnxruntime.matrix.run_session", run)
    path = write_attention(tmp_path / "scorer.onnx", **parts)
    feeds = feeds_of(4, 17, 16)
    found = OnnxRuntimeMatrixEngine(path, GRAPH).run(feeds)["score"]
    assert max(texts) == most
    np.testing.assert_allclose(found, by_formula(feeds, **parts), rtol=1e-5, atol=1e-5)


def test_rows_are_walked_once_and_nothing_of_the_texts_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsd_trt.engine.pooled_attention.available", lambda: False)
    walk, match = opened(monkeypatch, path)
    assert {it.name for it in walk.graph.input} == ROWS
    assert {it.name for it in match.graph.input} > TEXTS
    given = {it.name for it in walk.graph.output}
    assert given == {it.name for it in match.graph.input} - ROWS - TEXTS
    assert "queries" in given
    nodes = [[node.output[0] for node in part.graph.node] for part in (walk, match)]
    assert not set(nodes[0]) & set(nodes[1])
    assert {it.name for it in walk.graph.initializer} & {"weight", "lambda"} == set()


def opened(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[onnx.ModelProto]:
    """The parts of a graph as an engine opens them."""
    parts: list[onnx.ModelProto] = []

    def recorded(*arguments: Any, part: bytes, **options: Any) -> Any:
        parts.append(onnx.load_from_string(part))
        return open_session(*arguments, part=part, **options)

    monkeypatch.setattr("dsd_trt.engine.onnxruntime.matrix.open_session", recorded)
    OnnxRuntimeMatrixEngine(path, GRAPH)
    return parts


@pytest.mark.parametrize(
    "other",
    [
        {"start": 1},
        {"step": 2},
        {"over": 3},
        {"lam": 65.0},
        {"lam": [1.0, 2, 3, 4, 5, 6]},
        {"softmax": 3},
    ],
)
def test_other_attention_than_the_kernel_computes_is_left_in(
    other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsd_trt.engine.pooled_attention.available", lambda: True)
    assert len(opened(monkeypatch, write_attention(tmp_path / "usual.onnx"))) == 3
    assert len(opened(monkeypatch, write_attention(tmp_path / "other.onnx", **other))) == 2


@pytest.mark.parametrize("threshold", [300, 70])  # the basis of moments stays, or goes too
def test_weights_stay_in_the_bundles_files(threshold: int, tmp_path: Path) -> None:
    feeds, path = feeds_of(3, 4, 16), write_attention(tmp_path / "scorer.onnx", centres=True)
    expected = OnnxRuntimeMatrixEngine(path, GRAPH).run(feeds)["score"]
    folder = tmp_path / "apart"
    folder.mkdir()
    stored = {
        "save_as_external_data": True,
        "location": "weights.data",
        "size_threshold": threshold,
    }
    onnx.save(onnx.load(path), folder / path.name, **stored)
    engine = OnnxRuntimeMatrixEngine(folder / path.name, GRAPH)
    np.testing.assert_allclose(engine.run(feeds)["score"], expected, rtol=1e-6)
    shutil.rmtree(folder)  # what was verified computes on
    np.testing.assert_allclose(engine.run(feeds)["score"], expected, rtol=1e-6)
    with pytest.raises(EngineError, match=r"(n|N)o such file"):
        OnnxRuntimeMatrixEngine(folder / path.name, GRAPH)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\xff" * 40])
def test_what_is_no_graph_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(EngineError, match=f"onnxruntime refuses {path}"):
        OnnxRuntimeMatrixEngine(path, GRAPH)


def test_a_graph_that_is_cut_short_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(1, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(EngineError, match=r"onnxruntime refuses|where its bundle"):
            OnnxRuntimeMatrixEngine(path, GRAPH)
