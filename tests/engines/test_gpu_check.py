"""`dsd-trt gpu-check`, as far as it goes without a GPU: arithmetic, the report, the way there."""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorrt_rtx
from bundles import give_form, make_bundle
from click.testing import CliRunner, Result
from fake_gpu import FakeCuda
from fake_ort import FakeOrt, FakeSession
from onnx import TensorProto, helper, numpy_helper
from plans_on_cpu import PlansOnCpu, write_plans
from self_checked import add_self_check

import dsd_trt.engine.cuda as cuda_module
import dsd_trt.engine.onnxruntime.cuda_engine as engine_module
import dsd_trt.engine.onnxruntime.libraries as libraries
import dsd_trt.engines.gpu_check.check as module
import dsd_trt.engines.gpu_check.feeds as feeds_module
import dsd_trt.engines.gpu_check.plans as plans_module
import dsd_trt.engines.gpu_check.report as report_module
from dsd_trt import Bundle
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.commands.main import cli
from dsd_trt.engine import ON_GPU, engine_names
from dsd_trt.engine.onnxruntime.cuda import CUDA
from dsd_trt.engine.shared import check_feeds
from dsd_trt.engine.tensorrt.backend import TENSORRT
from dsd_trt.engine.tensorrt.plan import Profile
from dsd_trt.engines.gpu_check.check import check_gpu
from dsd_trt.engines.gpu_check.feeds import WORDS, draw_feeds
from dsd_trt.engines.gpu_check.figures import Checked, Gpu, Peer, Run, Scored, Timing
from dsd_trt.engines.gpu_check.plans import product
from dsd_trt.engines.gpu_check.recorder import Recorder
from dsd_trt.engines.gpu_check.report import GpuReport
from dsd_trt.engines.gpu_check.tables import to_markdown, write_report
from dsd_trt.engines.macs import count_macs
from dsd_trt.engines.network import create_network, parse
from dsd_trt.errors import EngineError, InputError

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)


# Arithmetic


def test_macs_of_a_convolution_and_a_product(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernel = numpy_helper.from_array(rng.normal(size=(6, 2, 3, 5)).astype(np.float32), "kernel")
    matrix = numpy_helper.from_array(rng.normal(size=(8, 7)).astype(np.float32), "matrix")
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["y"], group=2, pads=[1, 2, 1, 2]),
        helper.make_node("MatMul", ["y", "matrix"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4, 10, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", 6, 10, 7])],
        [kernel, matrix],
    )
    path = tmp_path / "g.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    signature = Graph("g.onnx", (TensorSpec("x", "float32", ("B", 4, 10, 8)),), ())
    # Every output sums over a group's 2 channels of 3 x 5 cells; every product over 8 columns.
    expected = 6 * 10 * 8 * 2 * 15 + 6 * 10 * 7 * 8
    assert count_macs(parse(tensorrt_rtx, path), signature) == expected


def test_macs_of_a_text_encoder(exported_fp16: Exported) -> None:
    bundle = exported_fp16.bundle
    checkpoint = exported_fp16.load().checkpoint
    config: Any = checkpoint.text_encoder.text_encoder.config  # type: ignore[union-attr]
    d, n = config.hidden_size, 77
    # Queries, keys, values and output; logits and their product with values; the MLP.
    layer = 4 * n * d * d + 2 * n * n * d + 2 * n * d * config.intermediate_size
    graph = bundle.manifest.graphs["text_encoder"]
    counted = count_macs(parse(tensorrt_rtx, bundle.path(graph.file)), graph)
    assert counted == config.num_hidden_layers * layer


def test_macs_of_the_product_that_stands_for_the_peak() -> None:
    network, graph = product(create_network(tensorrt_rtx))
    assert count_macs(network, graph) == 4096**3


# Random inputs


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with both modes, and a form for CUDA of the pair scorer."""
    folder = tmp_path_factory.mktemp("bundle") / "matrix"
    add_self_check(make_bundle(folder, matrix=True))
    return give_form(folder)


SIZES = {"B": 9, "I": 6, "T": 7, "L": 16}


@pytest.mark.parametrize("name", ["image_encoder", "text_encoder", "pair_scorer", "matrix_scorer"])
def test_drawn_inputs_are_what_the_contract_says(matrix: Bundle, name: str) -> None:
    feeds = draw_feeds(matrix, name, SIZES)
    graph = matrix.manifest.graphs[name]
    check_feeds(graph, feeds)
    assert list(feeds) == [spec.name for spec in graph.inputs]
    again = draw_feeds(matrix, name, SIZES)
    other = draw_feeds(matrix, name, SIZES, seed=1)
    for key, values in feeds.items():
        np.testing.assert_array_equal(values, again[key])
        assert values.any()
        assert key == "level" or (values != other[key]).any()
    outputs = ort.InferenceSession(matrix.path(graph.file)).run(None, feeds)
    assert all(np.isfinite(it).all() for it in outputs)


def test_drawn_texts_and_masks(matrix: Bundle) -> None:
    spec = replace(matrix.manifest.tokenizer, vocabulary=50)
    large = replace(matrix, manifest=replace(matrix.manifest, tokenizer=spec))
    ids = draw_feeds(large, "text_encoder", {"T": 300})["input_ids"]
    assert (ids[:, 0] == spec.bos_id).all()
    assert ((ids == spec.eos_id).sum(axis=1) == 1).all()
    ends = (ids == spec.eos_id).argmax(axis=1)
    assert {*ends} == {*range(2, WORDS + 2)}
    words = ids[(np.arange(77) > 0) & (np.arange(77) < ends[:, None])]
    assert {*words} == {*range(50)} - {spec.bos_id, spec.eos_id, spec.pad_id}
    assert (ids[np.arange(77) > ends[:, None]] == spec.pad_id).all()
    for name, width in (("pair_scorer", 77), ("matrix_scorer", 16)):
        feeds = draw_feeds(large, name, {"B": 300, "I": 2, "T": 300, "L": 16})
        mask = feeds["token_mask"]
        assert mask.shape[1] == width
        assert {*mask.ravel()} == {0.0, 1.0}
        assert not mask[:, 0].any()
        counted = mask.sum(axis=1).astype(int)
        assert {*counted} == {*range(2, WORDS + 2)}
        for row, count in zip(mask, counted, strict=True):
            assert row[1 : 1 + count].all()
        assert {*feeds["level"]} <= {0, 1, 2}
    assert {*feeds["level"]} == {0, 1}
    noise = draw_feeds(large, "pair_scorer", {"B": 300})
    assert {*noise["level"]} == {0, 1, 2}
    assert abs(noise["text_states"].std() - 1) < 0.02


def test_an_adapter_is_the_bundles_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    graph = bundle.manifest.graphs["pair_scorer"]
    adapter = TensorSpec("adapter", "float32", (5,))
    graphs = {
        **bundle.manifest.graphs,
        "pair_scorer": replace(graph, inputs=(*graph.inputs, adapter)),
    }
    fed = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    values = np.arange(5, dtype=np.float32)
    monkeypatch.setattr(feeds_module, "adapter_feed", lambda it: {"adapter": values})
    assert draw_feeds(fed, "pair_scorer", {"B": 2})["adapter"] is values


# The whole way, on stand-ins


class ClockedOrt(FakeOrt):
    """A provider whose clock only its passes move: by `ms` a row, `form_ms` for a form.

    Args:
        cuda: fake CUDA runtime that owns the memory.
        wrong: added to every score of a form and of a plain graph, by suffix of the file.
    """

    def __init__(self, cuda: FakeCuda, wrong: Mapping[str, float] | None = None) -> None:
        super().__init__(cuda)
        self.now, self.ms, self.form_ms, self.wrong = 0.0, 4.0, 2.0, dict(wrong or {})
        self.fails: set[tuple[str, int]] = set()  # (output, rows) of passes without memory

    def InferenceSession(self, path: Path, *rest: Any, **more: Any) -> FakeSession:  # noqa: N802
        session = super().InferenceSession(path, *rest, **more)
        compute = session.run_with_iobinding
        form = path.name.endswith(".cuda.onnx")

        def run(binding: Any, options: Any) -> None:
            name = session.get_outputs()[0].name
            rows = binding.places[binding.inputs[0]][2][0]
            if (name, rows) in self.fails:
                raise RuntimeError("Available memory of 1 is smaller than requested bytes of 2")
            compute(binding, options)
            if name == "score":
                binding.read(self.cuda, name)[...] += self.wrong.get(path.name, 0.0)
            self.now += rows * (self.form_ms if form else self.ms) / 1000

        session.run_with_iobinding = run  # type: ignore[method-assign]
        return session


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda((9, 0))
    fake.gpus = 2
    monkeypatch.setattr(cuda_module, "cudart", fake)
    yield fake
    gc.collect()  # what is dropped is freed in this fake, and not in the next one


@pytest.fixture
def clocked(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> ClockedOrt:
    fake = ClockedOrt(cuda)
    monkeypatch.setattr(libraries, "load_cuda", lambda device: fake)
    monkeypatch.setattr(engine_module, "load_cuda", lambda device: fake)
    monkeypatch.setattr(engine_module, "perf_counter", lambda: fake.now)
    return fake


BATCHES = Profile(1, 8, 32)


def times(run: Run) -> dict[tuple[str, str], float]:
    return {(it.graph, it.batch): it.ms for it in run.timings}


def test_the_report_of_onnxruntime(clocked: ClockedOrt, matrix: Bundle) -> None:
    def macs(name: str, sizes: Mapping[str, int]) -> int:
        return 10**9 * sizes.get("B", 0)

    saved: list[GpuReport] = []
    report = check_gpu(
        matrix,
        CUDA.on_device(1),
        BATCHES,
        macs=macs,
        command="dsd-trt gpu-check",
        save=saved.append,
    )
    assert report.gpu.number == 1
    assert report.gpu.compute_capability == "9.0"
    assert report.failures == {}
    assert report.complaints == []
    assert report.build_seconds == 0
    assert {session.settings["device_id"] for session in clocked.sessions} == {"1"}
    plain, form = report.runs["plain"], report.runs["form"]
    expected = {("pair_scorer", str(rows)): 4.0 * rows for rows in (1, 8, 32)}
    encoders = {("image_encoder", "8"): 32.0, ("text_encoder", "8"): 32.0}
    walk = {("matrix_scorer", "32 x 256"): 128.0}
    assert times(plain) == pytest.approx(expected | encoders | walk)
    halved = {key: ms / 2 for key, ms in expected.items()}
    assert times(form) == pytest.approx(halved | encoders | walk)
    assert report.used == "form"
    assert report.form_over_plain["pair_scorer"] == pytest.approx({"1": 2, "8": 2, "32": 2})
    # 32 x 256 pairs in 128 ms, beside a pair in 2 ms.
    assert report.matrix_over_pair == pytest.approx(256 / 4 * 2)
    (eight,) = (it for it in form.timings if it.batch == "8" and it.graph == "pair_scorer")
    assert eight.ms_a_row == pytest.approx(2)
    assert eight.pairs_per_second == pytest.approx(500)
    assert eight.tflops == pytest.approx(2 * 8e9 / 16e-3 / 1e12)
    for run in (plain, form):
        assert run.engine == "onnxruntime-gpu 1.31.1 on Fake GPU, fp32"
        assert run.scored.keys() == run.pairs_per_second.keys() == {"pair", "matrix"}
        for scored in run.scored.values():
            assert (scored.images, scored.texts, scored.levels) == (4, 3, 3)
            assert scored.not_finite == 0
            assert scored.max_difference is not None
            assert scored.max_difference < 1e-6
            assert scored.same_order == 1
            assert scored.smallest_gap > 1e-3
        assert run.memory_bytes > 0
        assert all(rate > 0 for rate in run.pairs_per_second.values())
    feeds = draw_feeds(matrix, "pair_scorer", {"B": 8})
    (score, _) = ort.InferenceSession(matrix.path("pair_scorer.onnx")).run(None, feeds)
    np.testing.assert_allclose(report.scores, score, atol=1e-6)
    assert [len(it.runs) for it in saved][:2] == [0, 1]  # written before and after every step
    assert not any(it.complete for it in saved)
    assert "form for CUDA over plain, pair_scorer | 2.00 x at 1, 2.00 x at 8" in to_markdown(report)


def test_nothing_stays_on_the_gpu(clocked: ClockedOrt, cuda: FakeCuda, matrix: Bundle) -> None:
    check_gpu(matrix, CUDA, BATCHES)
    clocked.sessions.clear()
    gc.collect()
    assert cuda.memory == {}


def test_scores_that_differ_are_told(clocked: ClockedOrt, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", matrix=True)
    clocked.wrong = {"pair_scorer.onnx": 0.01, "matrix_scorer.onnx": np.nan}
    report = check_gpu(bundle, CUDA, BATCHES)
    scored = report.run.scored
    assert report.used == "plain"
    assert scored["pair"].max_difference == pytest.approx(0.01, rel=1e-3)
    assert scored["pair"].same_order == 1
    assert (scored["matrix"].max_difference, scored["matrix"].not_finite) == (None, 12)
    assert scored["matrix"].same_order == 0
    assert report.complaints == ["matrix mode has NaN or infinity instead of scores: 12"]
    json.loads(report.to_json(), parse_constant=pytest.fail)  # without NaN


def test_a_form_that_fails_its_self_check_is_measured_and_not_used(
    clocked: ClockedOrt, tmp_path: Path
) -> None:
    add_self_check(make_bundle(tmp_path / "bundle"))
    bundle = give_form(tmp_path / "bundle")
    clocked.wrong = {"pair_scorer.cuda.onnx": 0.1}
    report = check_gpu(bundle, CUDA, BATCHES)
    assert report.used == "plain"
    assert report.complaints == []
    assert all(it.passed for it in report.runs["plain"].self_check.values())
    checked = report.runs["form"].self_check
    assert [name for name, it in checked.items() if not it.passed] == ["pair_scorer"]
    assert (checked["pair_scorer"].difference or 0) > 0.05
    assert times(report.runs["form"])["pair_scorer", "8"] == pytest.approx(16)
    assert "graphs as they are (used)" in to_markdown(report)


def test_a_graph_that_fails_its_self_check_is_a_complaint(
    clocked: ClockedOrt, tmp_path: Path
) -> None:
    bundle = add_self_check(make_bundle(tmp_path / "bundle"))
    clocked.wrong = {"pair_scorer.onnx": 0.1}
    (complaint,) = check_gpu(bundle, CUDA, BATCHES).complaints
    assert complaint.startswith("self-check of the pair_scorer: difference 0.")


def test_a_batch_without_memory_costs_the_others_nothing(
    clocked: ClockedOrt, matrix: Bundle
) -> None:
    clocked.fails = {("score", 64)}
    report = check_gpu(matrix, CUDA, Profile(1, 8, 64))
    assert report.failures.keys() == {f"{it}, pair_scorer, batch 64" for it in ("plain", "form")}
    assert times(report.run)["pair_scorer", "8"] == pytest.approx(16)
    assert times(report.run)["matrix_scorer", "32 x 256"] == pytest.approx(128)
    assert report.complaints == []
    assert "Not measured: plain, pair_scorer, batch 64: onnxruntime failed" in to_markdown(report)


def test_a_form_that_does_not_open_costs_the_graphs_nothing(
    clocked: ClockedOrt, matrix: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = clocked.InferenceSession

    def refuse(path: Path, *rest: Any, **more: Any) -> FakeSession:
        if path.name.endswith(".cuda.onnx"):
            raise RuntimeError("no kernel for MultiHeadAttention")
        return opened(path, *rest, **more)

    monkeypatch.setattr(clocked, "InferenceSession", refuse)
    report = check_gpu(matrix, CUDA, BATCHES)
    assert report.used == "plain"
    assert report.complaints == []
    assert "no kernel for MultiHeadAttention" in report.failures["form"]
    assert report.runs["plain"].scored.keys() == {"pair", "matrix"}


def test_graphs_that_do_not_open_are_a_complaint(clocked: ClockedOrt, tmp_path: Path) -> None:
    clocked.falls = True
    (complaint,) = check_gpu(make_bundle(tmp_path / "bundle"), CUDA, BATCHES).complaints
    assert complaint.startswith("plain: onnxruntime 1.31.1 took ['CPUExecutionProvider']")


def test_the_report_of_tensorrt(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle", matrix=True)
    cuda.milliseconds = 2.0
    profile = Profile(2, 16, 64)  # of plans that were built before
    write_plans(bundle, [profile], "9.0")
    monkeypatch.setitem(sys.modules, "tensorrt", PlansOnCpu(cuda, bundle, [profile]))
    monkeypatch.setattr(plans_module, "parse", lambda trt, path: None)
    monkeypatch.setattr(plans_module, "count_macs", lambda network, graph: 10**9)
    monkeypatch.setattr(module, "measure_peak", lambda backend: 64e12)
    stages: list[str] = []
    report = check_gpu(bundle, TENSORRT, BATCHES, stage=stages.append)
    assert report.build_seconds == 0  # every plan was there
    assert report.failures == {}
    assert report.runs.keys() == {"plain"}
    assert report.run.scored.keys() == report.run.pairs_per_second.keys() == {"pair", "matrix"}
    for scored in report.run.scored.values():
        assert scored.max_difference is not None
        assert scored.max_difference < 1e-6
        assert scored.same_order == 1
    pairs = [("pair_scorer", "2"), ("pair_scorer", "16"), ("pair_scorer", "64")]
    encoders = [("image_encoder", "16"), ("text_encoder", "16")]
    walk = ("matrix_scorer", "32 x 256")
    assert times(report.run) == pytest.approx(dict.fromkeys([*pairs, *encoders, walk], 2.0))
    (matrix,) = (it for it in report.run.timings if it.texts is not None)
    assert matrix.pairs_per_second == pytest.approx(32 * 256 / 2e-3)
    assert matrix.tflops is None  # its network is not counted
    rates = [it.tflops for it in report.run.timings[:3]]
    assert rates == pytest.approx([2 * rows * 1e9 / 2e-3 / 1e12 for rows in (2, 16, 64)])
    assert report.share_of_peak == pytest.approx(1)
    assert report.peak_tflops == {"tensorrt": 64}
    assert report.run.memory_bytes > 0
    assert report.run.pairs_per_second["pair"] > 0
    assert len(report.scores) == 16
    assert stages[-1] == "Timing a large product"
    assert report.run.engine == "tensorrt 10.13.3 on GPU of compute capability 9.0, fp32"


def test_pair_mode_is_checked_without_plans_of_the_matrix_scorer(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = add_self_check(make_bundle(tmp_path / "bundle", matrix=True))
    write_plans(bundle, [BATCHES], "9.0", ["image_encoder", "text_encoder", "pair_scorer"])
    monkeypatch.setitem(sys.modules, "tensorrt", PlansOnCpu(cuda, bundle, [BATCHES]))
    monkeypatch.setattr(module, "macs_of_plans", lambda bundle, backend: None)
    monkeypatch.setattr(module, "measure_peak", lambda backend: 64e12)

    def refuse(*given: Any, **more: Any) -> Iterator[None]:
        assert given[3] == ["matrix_scorer"]
        raise EngineError("no tactic for the walk")

    monkeypatch.setattr(plans_module, "build_plans", refuse)
    report = check_gpu(bundle, TENSORRT, BATCHES)
    assert report.failures == {"plans of the matrix_scorer": "no tactic for the walk"}
    assert report.complaints == []
    assert report.run.scored.keys() == {"pair"}
    assert report.run.self_check.keys() == {"image_encoder", "text_encoder", "pair_scorer"}
    assert "Not measured: plans of the matrix_scorer: no tactic" in to_markdown(report)


# The report


KEYS = {
    *("when", "complete", "command", "engine", "gpu", "machine", "versions", "bundle", "precision"),
    *("graph_hash", "build_seconds", "used", "runs", "scores", "peak_tflops", "peers"),
    *("peer_memory_bytes", "failures", "peer_failures"),
    *("share_of_peak", "matrix_over_pair", "form_over_plain", "speedup"),
}
TIMING = {"graph", "rows", "texts", "ms", "ms_a_row", "pairs_per_second", "tflops"}


def a_report(**more: Any) -> GpuReport:
    gpu = Gpu(0, "NVIDIA H200", "9.0", 150 * 10**9, "580.65.06", "13.0")
    timings = (
        Timing.of("pair_scorer", 0.016, {"B": 8}, 8 * 10**9),
        Timing.of("matrix_scorer", 0.1, {"I": 32, "T": 256, "L": 16}),
    )
    run = Run(
        "onnxruntime-gpu 1.31.1 on NVIDIA H200, fp16",
        {"pair_scorer": Checked(1e-4, 1e-2)},
        {"pair": Scored(4, 3, 4, 0, 1.5e-4, 0.75, 0.02)},
        timings,
        {"pair": 123.4},
        2 * 10**9,
    )
    peers = {
        "eager, SDPA": Peer((Timing.of("pair_scorer", 0.024, {"B": 8}, 8 * 10**9),), 2e-4),
        "torch.compile": Peer((Timing.of("pair_scorer", 0.016, {"B": 8}),), None, 61.5),
    }
    made = GpuReport(
        "2026-11-28T12:00+00:00",
        "dsd-trt gpu-check bundle",
        "onnxruntime-cuda",
        gpu,
        "Linux x86_64, Python 3.12.1",
        {"onnxruntime-gpu": "1.31.1"},
        "sd-2-1",
        "fp16",
        "abc",
        runs={"plain": run},
        peers=peers,
        peak_tflops={"torch": 2.0},
        peer_failures={"CUDA graph of SDPA, batch 8": "RuntimeError: out\nof memory"},
    )
    return replace(made, **more)


def test_keys_of_the_json_stay(tmp_path: Path) -> None:
    report = a_report(complete=True)
    write_report(report, tmp_path / "gpu")
    plain = json.loads((tmp_path / "gpu.json").read_text())
    assert plain.keys() == KEYS
    (run,) = plain["runs"].values()
    assert run.keys() == {
        *("engine", "self_check", "scored", "timings", "pairs_per_second", "memory_bytes"),
    }
    assert run["timings"][0].keys() == TIMING
    assert run["self_check"]["pair_scorer"].keys() == {"difference", "allowed"}
    assert run["scored"]["pair"].keys() == {
        *("images", "texts", "levels", "not_finite", "max_difference", "same_order"),
        "smallest_gap",
    }
    assert plain["gpu"].keys() == {
        *("number", "name", "compute_capability", "memory_bytes", "driver", "cuda"),
    }
    assert plain["peers"]["eager, SDPA"].keys() == {
        *("timings", "max_difference", "seconds_to_prepare"),
    }
    # Every key is described where the class is.
    told = " ".join(it.__doc__ or "" for it in (GpuReport, Gpu, Run, Scored, Checked, Timing, Peer))
    told += report_module.__doc__ or ""
    assert {key for key in KEYS | TIMING if not re.search(rf"\b{key}\b", told)} == set()
    assert plain["speedup"]["eager, SDPA"] == {"pair_scorer": {"8": pytest.approx(1.5)}}
    assert plain["speedup"]["torch.compile"] == {"pair_scorer": {"8": pytest.approx(1.0)}}
    assert plain["share_of_peak"] == pytest.approx(0.5)
    assert plain["matrix_over_pair"] == pytest.approx(32 * 256 / 0.1 * 0.016 / 8)


def test_the_tables() -> None:
    text = to_markdown(a_report(complete=True))
    for line in (
        "| pair mode: largest difference, at most 0.002 is expected | 0.00015 |",
        "| pair mode: images with the same order of texts | 75% |",
        "| graphs as they are, pair_scorer, 8 pairs | 16.00 | 2.000 | 500 | 1.0 |",
        "| graphs as they are, matrix_scorer, 32 images x 256 texts | 100.00 | 3.125 | 81920 | - |",
        "| eager, SDPA, pair_scorer, 8 pairs | 24.00 | 3.000 | 333 | 0.7 | 1.50 x |",
        "| pair scorer, share of the largest product | 50.0% |",
        "- Not measured: CUDA graph of SDPA, batch 8: RuntimeError: out of memory",
        "Largest difference of a score from the engine's: eager, SDPA 0.0002.",
        "`dsd-trt gpu-check bundle`",
    ):
        assert line in text.splitlines()
    assert "driver 580.65.06, CUDA 13.0 at most; Linux x86_64" in text
    assert "did not come to its end" not in text
    assert "did not come to its end" in to_markdown(a_report())


def test_an_empty_report_can_be_written(tmp_path: Path) -> None:
    empty = a_report(runs={}, peers={}, peak_tflops={}, peer_failures={})
    assert json.loads(empty.to_json())["share_of_peak"] is None
    write_report(empty, tmp_path / "gpu")
    with pytest.raises(InputError, match="cannot write"):
        write_report(empty, tmp_path / "nowhere" / "gpu")


def test_an_error_of_the_engine_is_a_line_and_others_are_raised() -> None:
    saved: list[GpuReport] = []
    steps = Recorder(a_report(), save=saved.append)
    with steps.attempt("a figure"):
        raise EngineError("no memory")
    assert saved[-1].failures == {"a figure": "no memory"}
    with pytest.raises(ZeroDivisionError), steps.attempt("a figure"):
        1 / 0  # noqa: B018


# The command


def ask(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["gpu-check", *map(str, arguments)])


@pytest.mark.parametrize("engine", ON_GPU)
def test_without_a_gpu_nothing_is_built_or_written(
    matrix: Bundle, tmp_path: Path, engine: str
) -> None:
    before = sorted(matrix.folder.rglob("*"))
    result = ask(matrix.folder, "--engine", engine, "--out", tmp_path / "gpu", "--model", "shapes")
    assert result.exit_code == 4
    assert re.search("no CUDA device|driver|pip install", result.output)
    others = [it for it in engine_names() if it not in ON_GPU]
    assert not [it for it in others if f"--engine {it}" in result.output]  # it takes none of them
    assert not list(tmp_path.iterdir())
    assert sorted(matrix.folder.rglob("*")) == before


@pytest.mark.parametrize("engine", [it for it in engine_names() if it not in ON_GPU])
def test_an_engine_of_the_processor_is_refused(matrix: Bundle, engine: str) -> None:
    result = ask(matrix.folder, "--engine", engine)
    assert result.exit_code == 2
    assert all(f"'{it}'" in result.output for it in ON_GPU)


@pytest.mark.parametrize("batch", ["8", "1,8", "8,1,32", "0,8,32", "a,b,c"])
def test_batches_that_are_none(matrix: Bundle, batch: str) -> None:
    assert ask(matrix.folder, "--batch", batch).exit_code == 2


def test_the_command_writes_everything(clocked: ClockedOrt, matrix: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    result = ask(
        matrix.folder, "--device", "1", "--batch", "1,4,8", "--out", out, "--model", "shapes"
    )
    assert result.exit_code == 0, result.output
    plain = json.loads((tmp_path / "gpu.json").read_text())
    assert plain["complete"]
    assert plain["command"] == (
        f"dsd-trt gpu-check {matrix.folder} --engine onnxruntime-cuda --device 1 --batch 1,4,8 "
        "--model shapes"
    )
    assert plain["versions"]["numpy"] == np.__version__
    pairs = [it for it in plain["runs"]["form"]["timings"] if it["graph"] == "pair_scorer"]
    assert [it["rows"] for it in pairs] == [1, 4, 8]
    assert all(it["tflops"] > 0 for it in pairs)
    # PyTorch here has no GPU.
    assert plain["peer_failures"].keys() == {"PyTorch"}
    assert "sees no GPU" in plain["peer_failures"]["PyTorch"]
    assert "pair mode: largest difference" in (tmp_path / "gpu.md").read_text()
    assert (tmp_path / "gpu.md").read_text() in result.output


def test_a_report_that_cannot_be_written_costs_no_work(
    clocked: ClockedOrt, matrix: Bundle, tmp_path: Path
) -> None:
    result = ask(matrix.folder, "--out", tmp_path / "nowhere" / "gpu")
    assert result.exit_code == 2
    assert clocked.sessions == []


def test_wrong_scores_end_in_an_error_after_the_report(clocked: ClockedOrt, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    clocked.wrong = {"pair_scorer.onnx": float("nan")}
    result = ask(bundle.folder, "--out", tmp_path / "gpu")
    assert result.exit_code == 4
    assert "pair mode has NaN or infinity instead of scores: 12" in str(result.output)
    plain = json.loads((tmp_path / "gpu.json").read_text())
    assert plain["complete"]
    assert plain["runs"]["plain"]["scored"]["pair"]["not_finite"] == 12


def test_an_adapter_without_a_model_is_refused(matrix: Bundle, tmp_path: Path) -> None:
    assert ask(matrix.folder, "--adapter", tmp_path).exit_code == 2
