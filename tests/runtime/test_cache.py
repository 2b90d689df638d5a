"""What is remembered between runs, and what OpenVINO compiled."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from full_disk import files_of_at_most
from onnx import helper, numpy_helper
from processor import BF16

from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.folder import read_bundle
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.cache import cache_folder, recall, remember
from dsd_trt.engine.openvino.backend import FP32
from dsd_trt.engine.openvino.compiled import kept_compiled
from dsd_trt.engine.openvino.runner import OpenVinoEngine
from dsd_trt.errors import InputError


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
    assert (cache / "compiled").is_dir()


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


@pytest.mark.skipif(not BF16, reason="this processor does not compute in BF16")
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
    monkeypatch.setattr("dsd_trt.bundle.folder.LARGE_BYTES", 0)
    for _ in range(2):
        engine = FP32.open(bundle, "pair_scorer")
        assert isinstance(engine, OpenVinoEngine)
        assert not engine.from_cache
    assert not cache.exists()


def open_large(bundle: Bundle, graph: str = "pair_scorer") -> OpenVinoEngine:
    """Open a bundle that counts as large, and keep what is compiled."""
    engine = replace(FP32, cache_compiled=True).open(bundle, graph)
    assert isinstance(engine, OpenVinoEngine)
    return engine


def _score(engine: OpenVinoEngine, bundle: Bundle) -> list[float]:
    rng = np.random.default_rng(0)
    graph = bundle.manifest.graphs["pair_scorer"]
    feeds = {
        "latent": rng.normal(size=graph.inputs[0].of_batch(3)).astype(np.float32),
        "level": np.zeros(3, np.int32),
        "text_states": rng.normal(size=graph.inputs[2].of_batch(3)).astype(np.float32),
        "token_mask": np.ones(graph.inputs[3].of_batch(3), np.float32),
    }
    return engine.run(feeds)["score"].tolist()


@pytest.mark.parametrize("damaged", [False, True])
def test_gigabytes_are_kept_on_request(
    cache: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """And the bits of a score are those of a model that was not kept."""
    bundle = read_bundle(bundle_folder(None))
    monkeypatch.setattr("dsd_trt.bundle.folder.LARGE_BYTES", 0)
    plain = FP32.open(bundle, "pair_scorer")
    assert isinstance(plain, OpenVinoEngine)
    wanted = _score(plain, bundle)
    assert not cache.exists()
    assert _score(open_large(bundle), bundle) == wanted  # compiled, then read back from the cache
    (folder,) = _kept(cache)
    (blob,) = folder.glob("*.blob")
    before = blob.stat().st_mtime_ns
    if damaged:
        content = bytearray(blob.read_bytes())
        content[len(content) // 2] ^= 0x40
        blob.unlink()  # the plain write would change the pages that engines have mapped
        blob.write_bytes(content)
        before = 0
    assert _score(open_large(bundle), bundle) == wanted
    assert (next(folder.glob("*.blob")).stat().st_mtime_ns == before) == (not damaged)


@pytest.mark.parametrize("short", ["limit", "disk", "write", "no cache"])
def test_gigabytes_without_room_are_compiled_at_every_start(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, short: str
) -> None:
    bundle = read_bundle(bundle_folder(None))
    monkeypatch.setattr("dsd_trt.bundle.folder.LARGE_BYTES", 0)
    size = 4 * 4.4e6  # FP32 numbers of the demonstration's U-Net, about
    limit: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    why = ""
    if short == "limit":
        monkeypatch.setenv("DSD_TRT_MAX_COMPILED_BYTES", "1000000")
        why = "because the limit DSD_TRT_MAX_COMPILED_BYTES is 1.0 MB"
    elif short == "disk":
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 2**28 + 10**6))
        why = "because the disk has 0.27 GB left"
    elif short == "write":
        limit = files_of_at_most(int(size) // 2)
    else:
        monkeypatch.setenv("DSD_TRT_CACHE", "")
    with limit:
        for _ in range(2):
            engine = open_large(bundle)
            assert not engine.from_cache
            assert np.isfinite(_score(engine, bundle)).all()
    assert not list(cache.rglob("*.blob"))
    said = [it.message for it in caplog.records if it.levelname == "WARNING"]
    assert len(said) == (2 if why else 0)
    for message in said:
        assert message.startswith("pair_scorer.onnx is compiled at every start and takes twice")
        assert message.endswith(why)


def test_a_cache_of_gigabytes_is_told_of(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dsd_trt.bundle.folder.LARGE_BYTES", 0)
    monkeypatch.setattr("dsd_trt.engine.openvino.compiled._LARGE", 10**6)
    bundle = read_bundle(bundle_folder(None))
    for _ in range(2):
        open_large(bundle)
    (said,) = (it.message for it in caplog.records if it.levelname == "WARNING")
    assert re.fullmatch(rf"compiled model of [\d.]+ MB put into the cache, {cache}/.*", said)


# What is kept of it


def _kept(cache: Path) -> list[Path]:
    return sorted(it.parent for it in cache.rglob("*.blob"))


def _compile(store: Path, key: str, size: int, limit: int) -> bool:
    """Stands in for OpenVINO: a file per key; whether there was one already."""
    with kept_compiled(store, key, limit) as folder:
        assert folder is not None
        blob = folder / "1.blob"
        if blob.exists():
            return True
        blob.write_bytes(bytes(size))
        return False


def test_beyond_the_limit_the_longest_unused_goes(tmp_path: Path) -> None:
    store = tmp_path / "compiled"
    for day, key in enumerate("abcd"):
        assert not _compile(store, key, 1000, 10_000)
        (newest,) = (it for it in store.iterdir() if it.stat().st_mtime > 10_000)
        os.utime(newest, (day, day))
    assert _compile(store, "a", 1000, 2500)  # used again, and nothing was compiled
    assert len(_kept(store)) == 4
    assert not _compile(store, "e", 1000, 2500)
    assert [_compile(store, key, 1000, 10_000) for key in "ea"] == [True, True]
    assert len(_kept(store)) == 2
    assert not _compile(store, "f", 1000, 1)  # what is in use stays, whatever its size
    assert _compile(store, "f", 1000, 1)
    assert len(_kept(store)) == 1


def test_the_limit_is_that_of_the_variable(
    cache: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSD_TRT_MAX_COMPILED_BYTES", "1")
    for name in ("image_encoder", "text_encoder", "pair_scorer"):
        FP32.open(bundle, name).close()
        assert len(_kept(cache)) == 1
    monkeypatch.setenv("DSD_TRT_MAX_COMPILED_BYTES", "none")
    with pytest.raises(InputError, match="DSD_TRT_MAX_COMPILED_BYTES must be a whole number"):
        open_it(bundle)


def test_what_earlier_versions_kept_goes(cache: Path, bundle: Bundle) -> None:
    entry = cache / "openvino-f32" / "0123456789abcdef0123456789abcdef"
    entry.mkdir(parents=True)
    (cache / "openvino").mkdir()
    for path in (entry / "1.blob", entry / "1.sha256", cache / "openvino" / "2.blob"):
        path.write_bytes(b"compiled")
    (cache / "openvino-bf16").mkdir()  # of a process that runs, perhaps
    for name in ("openvino-f32", "openvino"):
        os.utime(cache / name, (0, 0))
    other = cache / "somebody's"
    other.mkdir()
    os.utime(other, (0, 0))
    open_it(bundle)
    assert {it.name for it in cache.iterdir()} == {"compiled", "openvino-bf16", "somebody's"}


def test_bundles_of_one_graph_and_other_weights_share_a_folder_that_does_not_grow(
    tmp_path: Path,
) -> None:
    for number in range(9):
        with kept_compiled(tmp_path, "graph", 10_000) as folder:
            assert folder is not None
            (folder / f"{number}.blob").write_bytes(b"compiled")
            os.utime(folder / f"{number}.blob", (number, number))
    assert {it.name for it in tmp_path.rglob("*.blob")} == {f"{it}.blob" for it in range(5, 9)}
    assert {it.name for it in tmp_path.rglob("*.crc32")} == {f"{it}.crc32" for it in range(5, 9)}


def test_what_a_killed_process_was_removing_goes_with_the_next(tmp_path: Path) -> None:
    gone = tmp_path / f".0123456789abcdef.{'0' * 8}.1-0.{'0' * 8}.part"
    gone.mkdir()
    (gone / "1.blob").write_bytes(b"compiled")
    for path in (gone / "1.blob", gone):
        os.utime(path, (0, 0))
    _compile(tmp_path, "a", 10, 1000)
    assert not gone.exists()


def test_what_cannot_be_removed_stays_and_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compile(tmp_path, "a", 1000, 1000)

    def refuse(path: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    assert not _compile(tmp_path, "b", 1000, 1000)
    assert [_compile(tmp_path, key, 1000, 1000) for key in "ab"] == [True, True]


WORKER = """
import random, sys
from pathlib import Path
from dsd_trt.engine.openvino.compiled import kept_compiled
rng = random.Random(sys.argv[2])
print("begun", flush=True)
for _ in range(int(sys.argv[3])):
    key = rng.randrange(6)
    with kept_compiled(Path(sys.argv[1]), key, 2500) as folder:
        blob, fresh = folder / f"{key}.blob", folder / f"{sys.argv[2]}.fresh"
        try:
            assert blob.read_bytes() == bytes([key]) * 1000
        except FileNotFoundError:
            fresh.write_bytes(bytes([key]) * 1000)
            fresh.rename(blob)
        assert folder.is_dir(), "removed while in use"
"""


def test_processes_that_fill_and_empty_one_store_never_meet(tmp_path: Path) -> None:
    """Three work to their end, and one is killed in the middle of it."""
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    ends = [
        subprocess.Popen([*command, str(seed), "150"], stdout=subprocess.DEVNULL)
        for seed in range(3)
    ]
    killed = subprocess.Popen([*command, "4", "1000000"], stdout=subprocess.PIPE)
    assert killed.stdout is not None
    killed.stdout.readline()
    time.sleep(0.2)
    killed.kill()
    killed.communicate()
    assert [it.wait(60) for it in ends] == [0, 0, 0]
    _compile(tmp_path, "last", 1000, 2500)
    assert len(list(tmp_path.iterdir())) <= 2
    assert not list(tmp_path.glob("*.part"))
