"""What is remembered between runs, and what OpenVINO compiled."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from full_disk import files_of_at_most
from onnx import helper, numpy_helper

from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.folder import bundle_folder, read_bundle
from dsd_trt.cache import cache_folder, recall, remember
from dsd_trt.engine.openvino.backend import FP32
from dsd_trt.engine.openvino.runner import OpenVinoEngine


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_measurement_is_remembered_by_everything_it_depends_on(cache: Path) -> None:
    assert recall("speed", "a graph") is None
    remember("speed", "a graph", 0.25)
    remember("speed", "another", 4)
    assert recall("speed", "a graph") == 0.25
    assert recall("speed", "another") == 4
    assert recall("size", "a graph") is None
    assert not list(cache.glob(".*.part"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "a graph"}', '{"value": 1}', "{}"])
def test_what_is_damaged_is_measured_again(cache: Path, content: str) -> None:
    remember("speed", "a graph", 0.25)
    (file,) = cache.iterdir()
    file.write_text(content)
    assert recall("speed", "a graph") is None


def test_a_hash_that_two_keys_share_does_not_mix_them_up(cache: Path) -> None:
    remember("speed", "a graph", 0.25)
    (file,) = cache.iterdir()
    file.write_text(file.read_text().replace("a graph", "another"))
    assert recall("speed", "a graph") is None


def test_an_empty_name_remembers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_TRT_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    remember("speed", "a graph", 0.25)
    assert cache_folder() is None
    assert recall("speed", "a graph") is None
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_no_error_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DSD_TRT_CACHE", str(tmp_path / "file" / "cache"))
    remember("speed", "a graph", 0.25)
    assert cache_folder() is None
    (said,) = caplog.messages
    assert f"cannot write {tmp_path}/file/cache (" in said
    assert "another folder in DSD_TRT_CACHE" in said


def test_a_user_without_a_home_has_no_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    for variable in ("DSD_TRT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert cache_folder() is None
    assert "there is no home folder" in caplog.text


def test_it_lies_where_the_user_keeps_such_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DSD_TRT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dsd-trt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dsd-trt"


# What OpenVINO compiled


def open_it(bundle: Bundle) -> OpenVinoEngine:
    graph = bundle.manifest.graphs["pair_scorer"]
    return OpenVinoEngine(bundle.path(graph.file), graph)


def test_the_second_start_compiles_nothing(cache: Path) -> None:
    bundle = read_bundle(bundle_folder(None))
    first, second = open_it(bundle), open_it(bundle)
    assert (first.from_cache, second.from_cache) == (False, True)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    scores = [
        Scorer(bundle, "openvino").score([picture], ["a red circle", "a star"]).scores
        for _ in range(2)
    ]
    assert np.array_equal(scores[0], scores[1])
    assert (cache / "openvino-f32").is_dir()


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "zeros", "sum", "no sum", "folder"])
def test_what_is_damaged_is_compiled_again(cache: Path, bundle: Bundle, damage: str) -> None:
    """OpenVINO 2026.4 computes with a changed bit of a weight without a word."""
    assert not open_it(bundle).from_cache
    (blob,) = cache.rglob("*.blob")
    (known,) = cache.rglob("*.crc32")
    content = bytearray(blob.read_bytes())
    file = known if damage in ("sum", "no sum") else blob
    file.unlink()
    if damage == "folder":
        blob.mkdir()
    elif damage == "sum":
        known.write_bytes(b"\xff")
    elif damage != "no sum":
        content[len(content) // 2] ^= 0x40
        cut = {"bit": len(content), "cut": len(content) // 2, "empty": 0}
        blob.write_bytes(content[: cut[damage]] if damage in cut else bytes(len(content)))
    assert not open_it(bundle).from_cache
    assert open_it(bundle).from_cache == (damage != "folder")


def test_a_full_disk_keeps_nothing_and_is_no_error(cache: Path, bundle: Bundle) -> None:
    with files_of_at_most(100):
        assert not open_it(bundle).from_cache
    assert not open_it(bundle).from_cache
    assert open_it(bundle).from_cache


def test_other_weights_are_compiled_anew(cache: Path, tmp_path: Path) -> None:
    """The same graph in the same place, of the same time: only a number differs."""
    shutil.copytree(bundle_folder(None), tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    open_it(bundle)
    path = tmp_path / "bundle" / "pair_scorer.onnx"
    model = onnx.load(path, load_external_data=False)
    weights = [tensor for tensor in model.graph.initializer if tensor.external_data]
    place = {entry.key: entry.value for entry in weights[len(weights) // 2].external_data}
    file = tmp_path / "bundle" / place["location"]
    content = bytearray(file.read_bytes())
    content[int(place["offset"]) + 1] ^= 0x40  # of a number's exponent
    file.write_bytes(content)
    assert not open_it(bundle).from_cache


def test_other_weights_are_computed_with(cache: Path, tmp_path: Path) -> None:
    """OpenVINO 2026.4 computes with the old ones where it is given the path to compile from.

    Of a path its cache knows the graph alone, not the file of weights beside it.
    """
    path = tmp_path / "sum.onnx"
    x = TensorSpec("x", "float32", ("B", 16))
    graph = Graph(path.name, (x,), (TensorSpec("y", "float32", ("B", 16)),))

    def sums(weight: float) -> tuple[bool, float]:
        model = helper.make_model(
            helper.make_graph(
                [helper.make_node("MatMul", ["x", "w"], ["y"])],
                "sum",
                *([helper.make_tensor_value_info(name, 1, ["B", 16])] for name in "xy"),
                [numpy_helper.from_array(np.full((16, 16), weight, np.float32), "w")],
            ),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=10,
        )
        (tmp_path / "w.data").unlink(missing_ok=True)
        outside = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
        onnx.save(model, path, **outside)
        engine = OpenVinoEngine(path, graph)
        return engine.from_cache, float(engine.run({"x": np.ones((1, 16), np.float32)})["y"][0, 0])

    assert [sums(weight) for weight in (1, 1, 2)] == [(False, 16), (True, 16), (False, 32)]


@pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this processor does not compute in BF16",
)
def test_a_precision_does_not_take_what_was_compiled_for_another(cache: Path) -> None:
    """As OpenVINO would, in one folder, and compute NaN."""
    bundle = read_bundle(bundle_folder(None))
    graph = bundle.manifest.graphs["pair_scorer"]
    rng = np.random.default_rng(0)
    feeds = {
        "latent": rng.normal(size=(2, *bundle.manifest.latent_shape)).astype(np.float32),
        "level": np.zeros(2, np.int32),
        "text_states": rng.normal(size=graph.inputs[2].of_batch(2)).astype(np.float32),
        "token_mask": np.ones((2, 77), np.float32),
    }
    full = open_it(bundle).run(feeds)["score"]
    for _ in range(2):  # compiled, then from the cache
        engine = OpenVinoEngine(bundle.path(graph.file), graph, bf16=True)
        assert engine.run(feeds)["score"] == pytest.approx(full, abs=1e-3)
    assert engine.from_cache


def test_gigabytes_are_not_kept(
    cache: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsd_trt.bundle.folder._LARGE_BYTES", 0)
    for _ in range(2):
        engine = FP32.open(bundle, "pair_scorer")
        assert isinstance(engine, OpenVinoEngine)
        assert not engine.from_cache
    assert not cache.exists()
