"""The TensorRT engines, on a stand-in for the GPU that does its work late and checks every address.

The stand-in computes with ONNX Runtime: what comes out has a closed form, as on any engine.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import RESOLUTION, closed_form, make_bundle
from fake_gpu import FakeCuda, FakeTensorRT
from numpy.typing import NDArray
from plans_on_cpu import PlansOnCpu, write_plans

import dsd_trt.engine.cuda as cuda_module
import dsd_trt.engine.tensorrt.runner as engine_module
from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.method import Mode
from dsd_trt.engine.tensorrt.backend import TENSORRT
from dsd_trt.engine.tensorrt.plan import SIDECAR_NAME, Profile, Sidecar, plans, write_plan
from dsd_trt.engine.tensorrt.runner import TensorRTEngine
from dsd_trt.errors import EngineError
from dsd_trt.files.schema import to_plain
from dsd_trt.installation import install_command

PROFILES = (Profile(1, 2, 3), Profile(4, 5, 6))

DOUBLE = Graph(
    "double.onnx",
    (
        TensorSpec("factor", "float32", (2,)),  # the same for every row
        TensorSpec("x", "float32", ("B", 2)),
        TensorSpec("level", "int32", ("B",)),
    ),
    (TensorSpec("y", "float32", ("B", 2)), TensorSpec("row", "float32", ("B",))),
)


def double(arrays: Any) -> dict[str, NDArray[Any]]:
    return {"y": arrays["factor"] * arrays["x"], "row": arrays["x"].sum(axis=1) + arrays["level"]}


def feeds(rows: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(rows)
    return {
        "factor": rng.normal(size=2).astype(np.float32),
        "x": rng.normal(size=(rows, 2)).astype(np.float32),
        "level": rng.integers(9, size=rows).astype(np.int32),
    }


def plan_for(
    bundle: Bundle, graph: str, profiles: tuple[Profile, ...] = PROFILES, **changes: Any
) -> None:
    content = b"plan of " + graph.encode()
    sidecar = Sidecar.of(
        memoryview(content), bundle.manifest, graph, "tensorrt", "10.13.3", ("8.6",), profiles
    )
    plan = write_plan(bundle.folder, memoryview(content), sidecar)
    if changes:  # to what no build would write
        plain = json.dumps(to_plain(replace(sidecar, **changes)))
        (plan.folder / SIDECAR_NAME).write_text(plain, encoding="utf-8")


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    return Bundle(tmp_path / "bundle", bundle.manifest)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_module, "cudart", fake)
    return fake


def doubling(bundle: Bundle, graph: Graph = DOUBLE) -> Bundle:
    """A bundle that declares a graph in the place of its text encoder."""
    graphs = {**bundle.manifest.graphs, "text_encoder": replace(graph, file="text_encoder.onnx")}
    return replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))


Open = Callable[..., tuple[TensorRTEngine, FakeTensorRT]]


@pytest.fixture
def open_double(cuda: FakeCuda, copied: Bundle, monkeypatch: pytest.MonkeyPatch) -> Open:
    """An engine that doubles, standing in the place of the text encoder's."""

    def open_it(profiles: tuple[Profile, ...] = PROFILES) -> tuple[TensorRTEngine, FakeTensorRT]:
        plan_for(copied, "text_encoder", profiles)
        limits = tuple((profile.min, profile.max) for profile in profiles)
        trt = FakeTensorRT(cuda, DOUBLE, double, limits)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        engine = TENSORRT.open(doubling(copied), "text_encoder")
        assert isinstance(engine, TensorRTEngine)
        return engine, trt

    return open_it


# Running


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 12, 13, 20, 31])
def test_any_number_of_rows_gives_what_the_plan_computes(open_double: Open, rows: int) -> None:
    engine, _ = open_double()
    fed = feeds(rows)
    for _ in range(3):  # run, recorded, recorded
        got = engine.run(fed)
        expected = double(fed)
        np.testing.assert_array_equal(got["y"], expected["y"])
        np.testing.assert_array_equal(got["row"], expected["row"].astype(np.float32))


def test_results_are_the_callers_own(open_double: Open) -> None:
    engine, _ = open_double()
    first = engine.run(feeds(5))
    kept = first["y"].copy()
    engine.run(feeds(6))
    np.testing.assert_array_equal(first["y"], kept)


def test_a_batch_below_the_least_is_filled_up(open_double: Open) -> None:
    engine, trt = open_double((Profile(4, 8, 8),))
    fed = feeds(2)
    np.testing.assert_array_equal(engine.run(fed)["y"], double(fed)["y"])
    assert {rows for _, rows in trt.enqueued} == {4}


def test_the_profile_is_the_one_made_for_the_size(open_double: Open) -> None:
    engine, trt = open_double((Profile(1, 2, 8), Profile(1, 8, 8)))
    for rows in (1, 2, 4, 6, 8):
        engine.run(feeds(rows))
    assert {rows: profile for profile, rows in trt.enqueued} == {1: 0, 2: 0, 4: 0, 6: 1, 8: 1}


def test_a_size_is_enqueued_once_and_recorded_once_for_each_set_of_buffers(
    open_double: Open, cuda: FakeCuda
) -> None:
    engine, trt = open_double((Profile(1, 4, 4),))
    for _ in range(5):
        engine.run(feeds(20))  # five full parts over two sets of buffers
    assert trt.enqueued == [(0, 4)] * 4  # run and recorded, twice
    assert cuda.calls.count("cudaGraphInstantiate") == 2
    assert cuda.calls.count("cudaGraphLaunch") == 25 - 2


def test_inputs_travel_while_the_part_before_is_computed(open_double: Open, cuda: FakeCuda) -> None:
    engine, _ = open_double((Profile(1, 4, 4),))
    engine.run(feeds(16))
    cuda.calls.clear()
    engine.run(feeds(16))
    waits = [i for i, name in enumerate(cuda.calls) if name == "cudaEventSynchronize"]
    launches = [i for i, name in enumerate(cuda.calls) if name == "cudaGraphLaunch"]
    assert len(launches) == len(waits) == 4
    assert launches[1] < waits[0]  # the second part is under way before the first is waited for
    assert launches[2] < waits[1]


def test_timing_is_of_the_gpu_alone(open_double: Open, cuda: FakeCuda) -> None:
    engine, _ = open_double((Profile(1, 4, 4),))
    cuda.milliseconds = 30.0
    assert engine.time(feeds(4), repeats=5) == pytest.approx(30e-3)
    queued = [name for name in cuda.calls if name in ("cudaEventRecord", "cudaGraphLaunch")]
    assert queued[-11:] == ["cudaEventRecord", *["cudaGraphLaunch", "cudaEventRecord"] * 5]


def test_everything_is_freed(open_double: Open, cuda: FakeCuda) -> None:
    engine, trt = open_double()
    engine.run(feeds(20))
    # Two sets of buffers for the most rows, and one memory for activations, whatever was run.
    row, factor = 2 * 4 + 4 + 2 * 4 + 4, 2 * 4
    assert cuda.used("device") == 2 * (6 * row + factor) + trt.activations
    assert cuda.used("host") == 2 * (6 * row + factor)
    del engine
    gc.collect()
    assert not cuda.memory
    assert not cuda.queues
    assert not cuda.events
    assert not cuda.graphs


def test_what_the_driver_refuses_is_an_error(open_double: Open, cuda: FakeCuda) -> None:
    cuda.room = 4200
    with pytest.raises(EngineError, match=r"cudaMalloc failed: cudaErrorMemoryAllocation"):
        open_double()


def test_only_calls_that_the_real_runtime_has(open_double: Open, cuda: FakeCuda) -> None:
    from cuda.bindings import runtime

    engine, _ = open_double()
    engine.run(feeds(20))
    del engine
    gc.collect()
    used = set(cuda.calls)
    assert {"cudaMalloc", "cudaGraphLaunch", "cudaEventRecord", "cudaFreeHost"} <= used
    assert not {name for name in used if not hasattr(runtime, name)}
    for kind in ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"):
        assert hasattr(runtime.cudaMemcpyKind, kind)


@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_scores_are_the_closed_form(
    mode: Mode, cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle", matrix=True)
    batches = (Profile(1, 2, 3), Profile(4, 5, 6))
    write_plans(bundle, batches)
    monkeypatch.setitem(sys.modules, "tensorrt", PlansOnCpu(cuda, bundle, batches))
    images = np.random.default_rng(0).integers(0, 256, (5, RESOLUTION, RESOLUTION, 3), np.uint8)
    texts = ["a red circle", "dog", "a green square", *("a " * i + "dog" for i in range(1, 20))]
    scorer = Scorer.load(bundle.folder, engine="tensorrt", mode=mode)
    scores = scorer.score(list(images), texts).scores
    expected = [[closed_form(image, text, mode=mode) for text in texts] for image in images]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert str(scorer.engine) == "tensorrt 10.13.3 on GPU of compute capability 8.6, fp32"


# Refusing, before the library sees a byte


def test_a_gpu_that_tensorrt_rtx_does_not_run_on_is_named_at_once(cuda: FakeCuda) -> None:
    assert engine_module.require("tensorrt-rtx")[1] == "8.6"
    cuda.capability = (9, 0)  # TensorRT-RTX 1.7.1 on an H200 refuses even what it built there
    with pytest.raises(EngineError, match=r"8\.9, 12\.0.*this one has 9\.0.*--engine tensorrt$"):
        engine_module.require("tensorrt-rtx")


def _refusal(copied: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> str:
    trt = FakeTensorRT(cuda, DOUBLE, double, ((1, 3),))
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    with pytest.raises(EngineError) as caught:
        TENSORRT.open(doubling(copied), "text_encoder")
    assert not trt.deserialised
    return str(caught.value)


def test_every_mismatch_has_its_own_message(
    copied: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied.folder / "engines"
    messages = [_refusal(copied, cuda, monkeypatch)]
    assert "has no tensorrt plan of its text_encoder" in messages[0]
    for changes, said in (
        ({"version": "11.4.0"}, "was built with tensorrt 11.4.0, here is 10.13.3"),
        ({"compute_capabilities": ("9.0",)}, "compute capability 9.0, this one has 8.6"),
        ({"graph_hash": "0" * 64}, "the bundle has changed since"),
        ({"size": 99}, "bytes instead of 99"),
        ({"sha256": "0" * 64}, "was altered"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        plan_for(copied, "text_encoder", **changes)
        messages.append(_refusal(copied, cuda, monkeypatch))
        assert said in messages[-1]
    assert len(set(messages)) == len(messages)
    assert all(f"dsd-trt build {copied.folder} --engine tensorrt" in said for said in messages)


def test_a_truncated_plan_is_refused(
    copied: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_for(copied, "text_encoder")
    (plan,) = plans(copied.folder)
    plan.path.write_bytes(plan.path.read_bytes()[:-3])
    assert "Build again" in _refusal(copied, cuda, monkeypatch)


def test_a_plan_that_fits_is_found_among_others(open_double: Open, copied: Bundle) -> None:
    plan_for(copied, "text_encoder", version="9.9")
    plan_for(copied, "text_encoder", compute_capabilities=("12.0",))
    plan_for(copied, "pair_scorer")
    engine, _ = open_double()
    assert engine.run(feeds(2)).keys() == {"y", "row"}


def test_a_library_that_refuses_a_sound_plan_is_an_error(
    copied: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"not what the stand-in takes"
    digest = hashlib.sha256(content).hexdigest()
    plan_for(copied, "text_encoder")
    (plan,) = plans(copied.folder)
    write_plan(
        copied.folder,
        memoryview(content),
        replace(plan.sidecar, size=len(content), sha256=digest),
    )
    trt = FakeTensorRT(cuda, DOUBLE, double, ((1, 3),))
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    with pytest.raises(EngineError, match="refuses"):
        TENSORRT.open(doubling(copied), "text_encoder")


def test_a_plan_of_other_tensors_is_refused(open_double: Open, copied: Bundle) -> None:
    open_double()
    other = replace(DOUBLE, inputs=(replace(DOUBLE.inputs[0], shape=("B", 3)), DOUBLE.inputs[1]))
    with pytest.raises(EngineError, match="where its bundle says"):
        TENSORRT.open(doubling(copied, other), "text_encoder")


def test_a_sidecar_that_cannot_be_read_is_an_error(
    copied: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_for(copied, "text_encoder")
    (plan,) = plans(copied.folder)
    (plan.folder / "engine.json").write_text('{"graph": "text_encoder"}')
    assert "engine.json cannot be read" in _refusal(copied, cuda, monkeypatch)


# Where there is no GPU, as here


@pytest.mark.parametrize(
    ("engine", "said"),
    [("tensorrt-rtx", "no CUDA device"), ("tensorrt", install_command("gpu"))],
)
def test_without_a_gpu_it_fails_with_what_is_missing(engine: str, said: str) -> None:
    examples = Path(__file__).parents[2] / "examples"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dsd_trt", "score", examples / "images"),
            *(examples / "texts.txt", "--engine", engine),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4
    assert said in done.stderr
    assert "Traceback" not in done.stderr
