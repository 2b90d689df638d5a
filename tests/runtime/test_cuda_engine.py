"""ONNX Runtime on a GPU, on stand-ins: memory, placement, recorded passes, bounds and devices.

The stand-ins compute on the CPU in memory of a fake device, so scores have their closed form and a
wrong address or order gives wrong numbers.
"""

from __future__ import annotations

import gc
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import RESOLUTION, closed_form, make_bundle
from click.testing import CliRunner
from fake_gpu import FakeCuda
from fake_ort import FakeOrt
from numpy.typing import NDArray
from self_checked import add_self_check

import dsd_trt.engine.cuda as cuda_module
import dsd_trt.engine.onnxruntime.cuda_engine as engine_module
import dsd_trt.engine.onnxruntime.libraries as libraries
from dsd_trt import Bundle, Scorer
from dsd_trt.bundle.folder import file_entry, write_manifest
from dsd_trt.commands.main import cli
from dsd_trt.engine.choice import named_backend
from dsd_trt.engine.onnxruntime.cuda import CUDA
from dsd_trt.engine.onnxruntime.cuda_engine import CudaEngine
from dsd_trt.engine.onnxruntime.cuda_session import SHAPE_OPERATORS
from dsd_trt.engine.onnxruntime.cuda_thread import on_gpu_thread
from dsd_trt.engine.rows import Rows
from dsd_trt.errors import EngineError, InputError

ROOT = Path(__file__).parents[2]
TEXTS = ["a red circle", "dog", "a green square", "a blue dog", "circle"]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "matrix", matrix=True)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    fake.gpus = 2
    monkeypatch.setattr(cuda_module, "cudart", fake)
    yield fake
    gc.collect()  # what is dropped is freed in this fake, and not in the next one


@pytest.fixture
def ort(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
    """ONNX Runtime for GPUs, with everything it needs."""
    fake = FakeOrt(cuda)
    monkeypatch.setattr(libraries, "load_cuda", lambda device: fake)
    monkeypatch.setattr(engine_module, "load_cuda", lambda device: fake)
    return fake


def images(count: int) -> list[NDArray[np.uint8]]:
    drawn = np.random.default_rng(5).integers(0, 256, (count, RESOLUTION, RESOLUTION, 3), np.uint8)
    return list(drawn)


def open_scorer(ort: FakeOrt, bundle: Bundle, **more: Any) -> Scorer:
    return Scorer(bundle, "onnxruntime-cuda", self_check=False, **more)


# Scores


@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_scores_have_their_closed_form(ort: FakeOrt, matrix: Bundle, mode: Any) -> None:
    pictures = images(7)
    with open_scorer(ort, matrix, mode=mode, memory_budget_mb=0.02) as scorer:
        for _ in range(3):  # as it is, recorded, replayed
            got = scorer.score(pictures, TEXTS).scores
            expected = [[closed_form(it, text, mode=mode) for text in TEXTS] for it in pictures]
            np.testing.assert_allclose(got, expected, atol=1e-6)
        assert str(scorer.engine) == "onnxruntime-gpu 1.31.1 on Fake GPU, fp32"


def test_calls_of_many_sizes_and_threads_get_their_own_scores(ort: FakeOrt, matrix: Bundle) -> None:
    pictures, wrong = images(9), list[object]()
    with open_scorer(ort, matrix, mode="pair") as scorer:

        def work(count: int) -> None:
            for _ in range(10):
                try:
                    got = scorer.score(pictures[:count], TEXTS[: count % 4 + 1]).scores
                except Exception as error:
                    wrong.append(error)
                    return
                expected = [
                    [closed_form(it, text) for text in TEXTS[: count % 4 + 1]]
                    for it in pictures[:count]
                ]
                if not np.allclose(got, expected, atol=1e-6):
                    wrong.append(count)

        threads = [Thread(target=work, args=(count,)) for count in range(1, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_rows_stay_on_the_device(
    ort: FakeOrt, cuda: FakeCuda, matrix: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents, states and masks are uploaded once, levels with every batch."""
    kinds: list[str] = []
    copy = cuda.cudaMemcpyAsync

    def noted(target: int, source: int, size: int, kind: Any, stream: int) -> Any:
        kinds.append(kind.name)
        return copy(target, source, size, kind, stream)

    with open_scorer(ort, matrix, mode="pair", memory_budget_mb=0.02) as scorer:
        pipeline = scorer._pipeline
        latent, texts = pipeline.encode_images(images(4)), pipeline.encode_texts(TEXTS)
        monkeypatch.setattr(cuda, "cudaMemcpyAsync", noted)
        image, text = (at.ravel() for at in np.indices((4, len(TEXTS))))
        for _ in range(2):
            pipeline.score(latent, texts, image, text, np.arange(3, dtype=np.int32))
    batches = 2 * -(-4 * len(TEXTS) * 3 // pipeline.batch.passes)
    assert batches > 10
    assert kinds.count("cudaMemcpyHostToDevice") == 3 + batches
    assert kinds.count("cudaMemcpyDeviceToDevice") >= 3 * batches


# Sessions


def test_what_a_session_is_asked_for(ort: FakeOrt, matrix: Bundle) -> None:
    with open_scorer(ort, matrix, memory_budget_mb=64, device=1):
        pass
    for session in ort.sessions:
        assert session.settings["device_id"] == "1"
        assert session.settings["use_tf32"] == "0"
        # The arena counts weights, which FP32 may store in half of their bytes.
        weights = sum(matrix.manifest.files[it].size for it in matrix.manifest.weight_files)
        assert session.settings["gpu_mem_limit"] == str(64 * 2**20 + 2 * weights + 2**30)
        assert session.settings["arena_extend_strategy"] == "kSameAsRequested"
        assert session.options.use_deterministic_compute
    # Of the scorer alone, which is opened first.
    assert [it.settings["enable_cuda_graph"] for it in ort.sessions] == ["1", "0", "0"]


def test_a_silent_fall_to_the_processor_is_an_error(
    ort: FakeOrt, cuda: FakeCuda, matrix: Bundle
) -> None:
    ort.falls = True
    with pytest.raises(EngineError, match="took \\['CPUExecutionProvider'\\] for CUDA"):
        open_scorer(ort, matrix)
    gc.collect()
    assert cuda.memory == {}


@pytest.mark.parametrize("operator", ["Conv", "MatMul", "Softmax", "MultiHeadAttention"])
def test_a_node_that_computes_on_the_processor_is_an_error(
    ort: FakeOrt, matrix: Bundle, operator: str
) -> None:
    ort.on_cpu = ("Shape", operator)
    with pytest.raises(EngineError, match=f"on the processor: {operator}. Use"):
        open_scorer(ort, matrix)


def test_a_graph_that_cannot_be_recorded_runs_as_it_is(
    ort: FakeOrt, matrix: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    ort.refuses_recording = True
    with open_scorer(ort, matrix, mode="pair") as scorer:
        got = scorer.score(images(2), TEXTS).scores
        again = scorer.score(images(2), TEXTS).scores
    np.testing.assert_array_equal(got, again)
    assert "without CUDA graphs" in caplog.text
    assert {run.get("gpu_graph_id") for run in ort.sessions[0].runs} == {None}


# Recorded passes and buffers


def opened(matrix: Bundle, graph: str = "pair_scorer") -> CudaEngine:
    return CUDA.within(matrix, 64).open(matrix, graph)


def feeds(engine: CudaEngine, rows: int) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    made: dict[str, Any] = {}
    for spec in engine._graph.inputs:
        shape = spec.of_batch(rows)
        if np.dtype(spec.dtype).kind == "i":
            made[spec.name] = random.integers(0, 3, shape).astype(spec.dtype)
        else:
            made[spec.name] = random.random(shape).astype(spec.dtype)
    return made


def test_a_size_is_recorded_at_its_second_pass(ort: FakeOrt, matrix: Bundle) -> None:
    engine = opened(matrix)
    for rows in (4, 3, 4, 4, 3):
        engine.run(feeds(engine, rows))
    assert [run["gpu_graph_id"] for run in ort.sessions[-1].runs] == [
        "-1",
        "-1",
        "-1",
        "1",
        "1",
        "-1",
        "2",
    ]


@pytest.mark.parametrize("breaks", ["fails", "differs"])
def test_a_recording_that_goes_wrong_is_given_up(
    ort: FakeOrt, matrix: Bundle, breaks: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another thread's calls of CUDA may break it; no score comes from it."""
    ort.breaks = breaks
    engine = opened(matrix)
    fed = feeds(engine, 4)
    first, *others = [engine.run(fed)["score"].copy() for _ in range(4)]
    for other in others:
        np.testing.assert_array_equal(other, first)
    assert caplog.text.count("is run without CUDA graphs from here on") == 1
    runs = [run.get("gpu_graph_id") for run in ort.sessions[-1].runs]
    assert runs == ["-1", "-1", "1", None, None]


# Forms


def with_form(bundle: Bundle, folder: Path, form: str, *, checked: bool = True) -> Bundle:
    """The bundle with a form of its pair scorer, which is another graph's file."""
    shutil.copytree(bundle.folder, folder)
    made = Bundle(folder, bundle.manifest)
    if checked:
        made = add_self_check(made)
    shutil.copy(folder / form, folder / "pair_scorer.cuda.onnx")
    manifest = replace(
        made.manifest,
        cuda_form={"pair_scorer": "pair_scorer.cuda.onnx"},
        files={**made.manifest.files, "pair_scorer.cuda.onnx": file_entry(folder / form)},
    )
    return write_manifest(folder, manifest)


def test_the_form_is_used(ort: FakeOrt, matrix: Bundle, tmp_path: Path) -> None:
    bundle = with_form(matrix, tmp_path / "formed", "pair_scorer.onnx")
    CUDA.within(bundle, 64).open(bundle, "pair_scorer")
    (session,) = ort.sessions
    assert session.path.name == "pair_scorer.cuda.onnx"
    assert session.settings["prefer_nhwc"] == "1"


@pytest.mark.parametrize(
    ("form", "checked", "why"),
    [
        ("text_encoder.onnx", True, "inputs"),
        ("other.onnx", True, "self-check of the pair scorer"),
        ("pair_scorer.onnx", False, "the bundle has no self-check"),
    ],
)
def test_a_form_that_cannot_be_trusted_is_not_used(
    ort: FakeOrt,
    matrix: Bundle,
    tmp_path: Path,
    form: str,
    checked: bool,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(matrix.folder, folder)
    model = onnx.load(folder / "pair_scorer.onnx")
    (node,) = [it for it in model.graph.node if it.op_type == "Sigmoid"]
    node.op_type = "Tanh"
    onnx.save(model, folder / "other.onnx")
    source = Bundle(folder, matrix.manifest)
    bundle = with_form(source, tmp_path / "formed", form, checked=checked)
    engine = CUDA.within(bundle, 64).open(bundle, "pair_scorer")
    assert ort.sessions[-1].path.name == "pair_scorer.onnx"
    assert ort.sessions[-1].settings["prefer_nhwc"] == "0"
    assert "the form for CUDA of pair_scorer.onnx is not used" in caplog.text
    assert why in caplog.text
    assert engine.run(feeds(engine, 2))["score"].shape == (2,)


def test_operators_of_shapes_are_those_of_the_c_library() -> None:
    source = (ROOT / "engines" / "cpp" / "src" / "onnxruntime_cuda.cpp").read_text()
    (listed,) = re.findall(r"kShapeOperators\{(.*?)\}", source, re.DOTALL)
    assert set(re.findall(r'"(\w+)"', listed)) == SHAPE_OPERATORS


def test_encoders_give_memory_back(ort: FakeOrt, matrix: Bundle) -> None:
    engine = opened(matrix, "text_encoder")
    engine.run({"input_ids": np.ones((2, 77), np.int32)})
    (run,) = ort.sessions[-1].runs
    assert run == {"memory.enable_memory_arena_shrinkage": "gpu:0"}


def test_few_sizes_have_buffers(ort: FakeOrt, cuda: FakeCuda, matrix: Bundle) -> None:
    engine = opened(matrix)
    for _ in range(2):
        for rows in range(1, 9):
            engine.run(feeds(engine, rows))
    held = cuda.used("device") + cuda.used("host")
    for rows in range(40, 8, -1):
        engine.run(feeds(engine, rows))
        engine.run(feeds(engine, rows))
    for rows in range(1, 9):
        engine.run(feeds(engine, rows))
    gc.collect()
    assert cuda.used("device") + cuda.used("host") == held
    assert len(ort.sessions[-1].recorded) <= 8


def test_results_are_the_callers_own(ort: FakeOrt, matrix: Bundle) -> None:
    engine = opened(matrix)
    first = engine.run(feeds(engine, 5))
    kept = first["score"].copy()
    engine.run({**feeds(engine, 5), "level": np.full(5, 2, np.int32)})
    np.testing.assert_array_equal(first["score"], kept)


def test_gathered_rows_equal_whole_arrays(ort: FakeOrt, matrix: Bundle) -> None:
    engine = opened(matrix)
    whole = feeds(engine, 6)
    for places in ([0], [5, 4, 3], [1, 2, 3, 0, 0, 5], list(range(6)), [2] * 5):
        at = np.array(places)
        rows: dict[str, Any] = {name: Rows(values, at) for name, values in whole.items()}
        got = engine.run(rows)
        expected = engine.run({name: values[at] for name, values in whole.items()})
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name])


def test_another_array_in_the_place_of_a_freed_one_is_uploaded(
    ort: FakeOrt, matrix: Bundle
) -> None:
    engine = opened(matrix)
    at = np.arange(3)
    for seed in range(30):
        random = np.random.default_rng(seed)
        values = random.random((3, 3, 2, 2)).astype(np.float32)
        fed = feeds(engine, 3) | {"latent": Rows(values, at)}
        got = engine.run(fed)["score"]
        expected = engine.run(fed | {"latent": values.copy()})["score"]
        np.testing.assert_array_equal(got, expected)
        del values, fed


def test_what_is_kept_on_the_device_is_bounded(
    ort: FakeOrt, cuda: FakeCuda, matrix: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, random = opened(matrix), np.random.default_rng(0)
    engine.run(feeds(engine, 2))
    held = cuda.used("device")
    monkeypatch.setattr(engine_module, "KEPT", 10_000)
    for count in (3, 100, 150, 5, 500):  # 48 bytes each: those of 500 are gathered by the host
        source = random.random((count, 3, 2, 2)).astype(np.float32)
        at = np.array([count - 1, 0])
        fed: dict[str, Any] = feeds(engine, 2) | {"latent": Rows(source, at)}
        expected = engine.run(fed | {"latent": source[at]})["score"]
        np.testing.assert_array_equal(engine.run(fed)["score"], expected)
        assert cuda.used("device") - held <= 10_000
    assert cuda.used("device") > held


@pytest.mark.parametrize("ending", ["closed", "dropped", "failed"])
def test_everything_is_freed(
    ort: FakeOrt, cuda: FakeCuda, matrix: Bundle, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(matrix)
    engine.run(feeds(engine, 3))
    whole = feeds(engine, 3)
    rows: dict[str, Any] = {name: Rows(values, np.arange(3)) for name, values in whole.items()}
    engine.run(rows)
    if ending == "failed":

        def fail(*_: Any) -> None:
            raise RuntimeError("Available memory of 1 is smaller than requested bytes of 2")

        monkeypatch.setattr(ort.sessions[-1], "run_with_iobinding", fail)
        with pytest.raises(EngineError, match="a smaller memory_budget_mb makes batches smaller"):
            engine.run(whole)
    if ending == "closed":
        engine.close()
    del engine
    ort.sessions.clear()
    gc.collect()
    assert cuda.memory == {}
    assert cuda.queues == {}


def test_the_callers_device_stays(ort: FakeOrt, cuda: FakeCuda, matrix: Bundle) -> None:
    cuda.cudaSetDevice(0)
    with open_scorer(ort, matrix, device=1) as scorer:
        scorer.score(images(1), TEXTS)
        assert cuda.cudaGetDevice()[1] == 0
        assert on_gpu_thread(1, cuda.cudaGetDevice)[1] == 1


# Budgets


def test_the_budget_is_of_what_weights_leave_free(
    ort: FakeOrt, cuda: FakeCuda, matrix: Bundle
) -> None:
    cuda.room = 16 * 2**30
    weights = sum(matrix.manifest.files[name].size for name in matrix.manifest.weight_files)
    left = 13 * 2**30 - 2 * weights  # FP32 may be stored in half of its bytes
    assert CUDA.within(matrix, None).memory_mb == pytest.approx(left * 0.4 / 2**20)
    cuda.room = 2**30
    assert CUDA.within(matrix, None).memory_mb == 0
    assert CUDA.within(matrix, 5).memory_mb == 5
    assert CUDA.within(matrix, 0).batch_sizes(matrix, 0).passes == 1


@pytest.mark.parametrize("budget", [-1, float("nan"), "much"])
def test_a_budget_that_is_none(ort: FakeOrt, matrix: Bundle, budget: Any) -> None:
    with pytest.raises(InputError, match="memory_budget_mb"):
        open_scorer(ort, matrix, memory_budget_mb=budget)


# The choice of an engine


def test_auto_takes_the_gpu(ort: FakeOrt, matrix: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt.backend", "onnxruntime.cuda"):
        monkeypatch.setattr(f"dsd_trt.engine.{module}.why_no_driver", lambda: None)
    with Scorer(matrix, self_check=False, mode="pair") as scorer:
        assert scorer.engine.device == "Fake GPU"
        assert scorer.why_engine == "tensorrt, tensorrt-rtx: the bundle has no plans for it"


def test_auto_passes_a_gpu_over_that_cannot_open_the_bundle(
    ort: FakeOrt, matrix: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorrt.backend", "onnxruntime.cuda"):
        monkeypatch.setattr(f"dsd_trt.engine.{module}.why_no_driver", lambda: None)
    ort.on_cpu = ("Conv",)
    with Scorer(matrix, self_check=False, mode="pair") as scorer:
        assert scorer.engine.device.startswith("CPU")
        assert "onnxruntime-cuda: onnxruntime has no CUDA kernel" in scorer.why_engine
    with pytest.raises(EngineError, match=r"no engine works on GPU 1: .*no CUDA kernel"):
        Scorer(matrix, self_check=False, device=1)
    with pytest.raises(EngineError, match="no CUDA kernel"):
        open_scorer(ort, matrix)


# Devices


@pytest.mark.parametrize("device", [-1, True, "0", 1.0, None])
def test_no_number_of_a_device(device: Any) -> None:
    with pytest.raises(InputError, match="devices are numbered"):
        named_backend("onnxruntime-cuda", device)


@pytest.mark.parametrize("device", ["x", "-1", "1.5", "cuda:0", "\u0663", "9" * 30])
def test_no_number_of_a_device_on_the_command_line(device: str) -> None:
    done = CliRunner().invoke(cli, ["score", "images", "texts", "--device", device])
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert f"'--device': '{device}' is no number of a GPU. The first one is 0" in said


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_processor_has_no_devices(engine: str) -> None:
    with pytest.raises(InputError, match="computes on the processor: leave the device out"):
        named_backend(engine, 1)


def test_runs_are_few_copies() -> None:
    source = np.arange(20).reshape(10, 2)
    for places in ([], [3], [1, 2, 3], [3, 2], [0, 1, 5, 6, 7, 7]):
        rows = Rows(source, np.array(places, np.intp))
        made = np.zeros(rows.shape, int)
        for first, here, count in rows.runs():
            made[here : here + count] = source[first : first + count]
        np.testing.assert_array_equal(made, rows.gathered())
    assert len(Rows(source, np.array([0, 1, 5, 6, 7, 7])).runs()) == 3
