"""`dsd-trt bench`: its arithmetic, counted twice; its report; and the command itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import tensorrt_rtx
import torch
from onnx import TensorProto, helper
from page_parts import PageParts
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsd_trt import Bundle
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.method import Mode
from dsd_trt.engine.openvino.backend import FP32
from dsd_trt.engines.macs import count_macs as count_by_tensorrt
from dsd_trt.engines.network import parse
from dsd_trt.errors import DisagreementError
from dsd_trt.export.benchmark import runtime
from dsd_trt.export.benchmark.macs import count_macs
from dsd_trt.export.benchmark.measure import Measured, build, measure
from dsd_trt.export.benchmark.memory import PeakMemory, memory_of, run_watched
from dsd_trt.export.benchmark.page import to_page
from dsd_trt.export.benchmark.report import PERCENTILES, BenchReport
from dsd_trt.export.benchmark.work import Work, encoded_requests
from dsd_trt.pipeline import Pipeline
from dsd_trt.train.diffusion.checkpoint import encode_texts

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)

GRAPHS = ("image_encoder", "text_encoder", "pair_scorer")


# Arithmetic


@pytest.mark.parametrize("name", GRAPHS)
def test_macs_are_those_tensorrt_counts(exported_fp32: Exported, name: str) -> None:
    bundle = exported_fp32.bundle
    graph = bundle.manifest.graphs[name]
    path = bundle.path(graph.file)
    assert count_macs(path, graph) == count_by_tensorrt(parse(tensorrt_rtx, path), graph) > 1e6


@torch.no_grad()
def test_macs_are_those_pytorch_counts(exported_fp32: Exported) -> None:
    recipe = exported_fp32.load()
    checkpoint = recipe.checkpoint
    scoring = recipe.build_scoring(checkpoint.unet)
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    latent = checkpoint.image_encoder(pixels)
    states, mask = encode_texts(checkpoint, ["a dog"])
    level = torch.zeros(1, dtype=torch.long)

    def score() -> None:
        scoring(latent, level, states, mask)

    unfolded = _flops(score) / 2
    scoring.fold_static_prompts()
    in_torch = {
        "image_encoder": _flops(lambda: checkpoint.image_encoder(pixels)) / 2,
        "text_encoder": _flops(lambda: encode_texts(checkpoint, ["a dog"])) / 2,
        "pair_scorer": _flops(score) / 2,
    }
    bundle = exported_fp32.bundle
    counted = {
        name: count_macs(bundle.path((graph := bundle.manifest.graphs[name]).file), graph)
        for name in in_torch
    }
    assert counted == in_torch
    assert unfolded > in_torch["pair_scorer"]  # what the export folds away


def _flops(run: Callable[[], object]) -> int:
    # Of fused attention it counts nothing.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def test_a_product_whose_size_is_unknown_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["places"])]
    nodes += [helper.make_node("Cast", ["places"], ["y"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("MatMul", ["x", "y"], ["z"], name="product")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 2])]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", "N"])]
    body = helper.make_graph(nodes, "g", inputs, outputs)
    onnx.save(helper.make_model(body), tmp_path / "g.onnx")
    signature = Graph("g.onnx", (TensorSpec("x", "float32", ("B", 2)),), ())
    with pytest.raises(ValueError, match="the size of product cannot be told"):
        count_macs(tmp_path / "g.onnx", signature)


# The report


@pytest.fixture
def report() -> BenchReport:
    """2 images x 4 texts at 2 levels; all figures can be told in one's head."""
    scores = tuple(map(tuple, np.arange(8.0).reshape(2, 4).tolist()))
    turned = (scores[0][::-1], scores[1])
    requests = tuple((np.random.default_rng(1).permutation(200) + 1) / 1000)  # 1 to 200 ms
    ours = Measured(
        *((0.5,) * 3, (1.0, 1.5, 3.5), 16, 16e9, "bf16", 100.0, scores),
        request_seconds=requests,
        memory=PeakMemory(60.4, 39.6),
    )
    reference = Measured((1.0,), (7.0,), 16, 16e9, "fp32", 900.0, scores, "", (0.5,) * 10)
    other = Measured((0.5,), (3.5,), 16, 16e9, "fp32", 200.0, turned, refused="too coarse")
    # Does everything anew: twice the passes, four times the arithmetic, encoders among it.
    naive = Measured((0.0,), (32.0,), 32, 64e9, "fp32", 950.0, scores)
    measured = {"openvino-bf16": ours, "onnxruntime": other, "torch-batched": reference}
    return BenchReport(
        "a machine",
        "a-bundle",
        pictures=2,
        texts=4,
        levels=2,
        peaks={"fp32": 8e9, "bf16": 32e9},
        cold_start=(2.0, 0.5),
        contenders={**measured, "naive": naive},
        failures={"torch-compile": "no compiler"},
    )


def rows(table: str) -> dict[str, list[str]]:
    """Cells of a Markdown table's rows by their first."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in lines}


def test_the_page_has_what_the_tables_have(report: BenchReport) -> None:
    parts = PageParts("".join(to_page(report)))
    shown = "\n".join(it.text for it in parts.all("tbody"))
    for table in report.to_markdown().split("\n\n")[:3]:
        for name, cells in list(rows(table).items())[2:]:
            assert "".join([name, *cells]) in shown
    assert parts.all("script") == []  # and none may run
    (policy,) = (it.attributes["content"] for it in parts.all("meta") if len(it.attributes) == 2
                 and "http-equiv" in it.attributes)  # fmt: skip
    assert "script-src" not in str(policy)
    # The first table's bars are as long as the rates beside the greatest.
    speed = report.to_markdown().split("\n\n")[0]
    rates = [float(cells[0]) for cells in list(rows(speed).values())[2:]]
    widths = [float(str(it.attributes["width"])) for it in parts.all("rect")[: len(rates)]]
    assert widths == pytest.approx([100 * it / max(rates) for it in rates], abs=0.01)
    assert "no compiler" in " ".join(it.text for it in parts.all("p"))


def test_a_row_is_what_was_measured(report: BenchReport) -> None:
    found = rows(report.to_markdown().split("\n\n")[0])
    # 8 pairs in 1.5, 2 and 4 s; 16 passes in 1.5 s; 1e9 of them in 94 ms, of 32e9/s; order kept.
    assert found["dsd-trt on OpenVINO, BF16"] == [
        *("4", "2 to 5.33", "93.8", "33", "100 MiB", "60 MiB", "40 MiB", "1.00000")
    ]
    # 1 - 6 sum(d^2) / (n (n^2 - 1)), d = 3, 1, 1, 3.
    assert found["dsd-trt on ONNX Runtime"][-1] == f"{1 - 6 * 20 / (8 * 63):.5f}"
    # 64e9 in 32 s, of 8e9/s.
    assert found["research loop, PyTorch FP32"] == [
        *("0.25", "0.25 to 0.25", "1e+03", "25", "950 MiB", "-", "-", "-")
    ]
    assert list(found)[2:] == [  # in the order of the list, not as they were measured
        *("dsd-trt on ONNX Runtime", "dsd-trt on OpenVINO, BF16"),
        *("PyTorch FP32", "research loop, PyTorch FP32"),
    ]


def test_factors_multiply_to_the_whole(report: BenchReport) -> None:
    found = rows(report.to_markdown().split("\n\n")[2])
    assert found["research loop, PyTorch FP32"] == ["16.00 x", "4.00 x", "4.00 x"]
    assert found["PyTorch FP32"] == ["4.00 x", "1.00 x", "4.00 x"]
    for cells in list(found.values())[2:]:
        whole, less, faster = (float(cell.removesuffix(" x")) for cell in cells)
        assert whole == pytest.approx(less * faster, rel=0.01)


def test_latencies_are_percentiles_with_enough_requests(report: BenchReport) -> None:
    table = report.to_markdown().split("\n\n")[1]
    assert table.startswith(
        "| ms per request: one image, one text, 2 levels | p50 | p90 | p99 | requests |\n"
    )
    found = rows(table)
    assert found["dsd-trt on OpenVINO, BF16"] == ["100", "180", "198", "200"]
    assert found["PyTorch FP32"] == ["500", "500", "-", "10"]  # p99 of ten is their largest
    assert found["research loop, PyTorch FP32"] == ["-", "-", "-", "0"]
    plain = json.loads(report.to_json())["contenders"]
    assert plain["openvino-bf16"]["latency"] == {
        "requests": 200,
        "p50_ms": 100.0,
        "p90_ms": 180.0,
        "p99_ms": 198.0,
    }
    assert len(plain["openvino-bf16"]["request_seconds"]) == 200
    assert plain["torch-batched"]["latency"]["p99_ms"] is None


@pytest.mark.parametrize("count", [1, 2, 9, 10, 99, 100, 101, 1000])
def test_percentiles_are_those_of_numpy(report: BenchReport, count: int) -> None:
    seconds = np.random.default_rng(count).exponential(size=count)
    measured = replace(report.contenders["naive"], request_seconds=tuple(seconds))
    latency = replace(report, contenders={"naive": measured}).latency("naive")
    for percent in PERCENTILES:
        got = latency[f"p{percent}_ms"]
        beyond = count * (1 - percent / 100)
        assert (got is None) == (beyond < 1 - 1e-9)
        if got is not None:
            expected = 1000 * np.quantile(seconds, percent / 100, method="inverted_cdf")
            assert got == pytest.approx(expected)


def test_what_it_was_measured_on_and_what_failed_is_said(report: BenchReport) -> None:
    text = report.to_markdown()
    assert "one image and one text: 2.00 s the first time, 0.50 s after that." in text
    assert "PyTorch FP32, torch.compile did not run: no compiler" in text
    assert text.count("was measured, but is refused") == 1
    assert "dsd-trt on ONNX Runtime was measured, but is refused: too coarse" in text
    assert "a machine. Largest matrix product: 16 GFLOP/s in fp32, 64 GFLOP/s in bf16" in text
    assert json.loads(report.to_json())["contenders"]["naive"]["macs"] == 64e9


# Memory by kind

HOLD = """
import mmap, sys, time
held = bytearray(64 << 20) if sys.argv[1] == "private" else b""
with open(sys.argv[2], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    if sys.argv[1] == "mapped":
        sum(mapped[at] for at in range(0, len(mapped), 4096))
print("held")
time.sleep(0.2)
del held
sys.exit(3)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_private_and_mapped_memory_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 << 20))
    found: dict[str, PeakMemory] = {}
    for kind in ("neither", "private", "mapped"):
        command = [sys.executable, "-c", HOLD, kind, str(tmp_path / "file")]
        run, memory = run_watched(command, {})
        assert (run.returncode, run.stdout) == (3, "held\n")
        assert memory is not None
        found[kind] = memory
    private, mapped, neither = found["private"], found["mapped"], found["neither"]
    assert private.private_mib - neither.private_mib == pytest.approx(64, abs=8)
    assert private.mapped_mib - neither.mapped_mib == pytest.approx(0, abs=8)
    assert mapped.mapped_mib - neither.mapped_mib == pytest.approx(64, abs=8)
    assert mapped.private_mib - neither.private_mib == pytest.approx(0, abs=8)


def test_a_process_that_is_not_there_has_no_memory() -> None:
    assert memory_of(2**22 + 1) is None  # above the largest process id


# What is measured


def test_what_is_too_coarse_to_be_served_is_measured_all_the_same(
    exported_fp32: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(bundle: Bundle, mode: Mode, pipeline: Pipeline, memory_budget_mb: float) -> None:
        pipeline.compile(mode)
        raise DisagreementError("too coarse")

    monkeypatch.setattr(runtime, "guarded", refuse)
    checked = replace(FP32, keeps_order_of="onnxruntime")
    monkeypatch.setattr("dsd_trt.engine.openvino.backend.FP32", checked)
    settings = exported_fp32.settings
    work = Work(exported_fp32.bundle, settings.model, settings.adapter, 2, 2, 1, 3)
    measured = measure("openvino", work)
    assert measured.refused == "too coarse"
    assert np.ptp(measured.scores) > 1e-3
    assert measure("onnxruntime", work).refused == ""


@pytest.mark.parametrize(
    "name",
    ["onnxruntime", "openvino-matrix", "torch", "torch-batched", "diffusion-classifier", "naive"],
)
def test_a_request_computes_what_a_round_does(exported_fp32: Exported, name: str) -> None:
    """From an encoded image and a text, at all levels: nothing is left out of the latency."""
    settings = exported_fp32.settings
    work = Work(exported_fp32.bundle, settings.model, settings.adapter, 2, 2, 1, 3)
    contender = build(name, work)
    requests = encoded_requests(work)
    assert len(requests) == 2
    scores = [contender.request(*it) for it in requests]
    if contender.encode is not None:
        contender.encode()
    np.testing.assert_allclose(scores, np.diag(contender.score()), atol=1e-5)
    measured = measure(name, work)
    assert len(measured.request_seconds) == 3
    assert min(measured.request_seconds) > 0


# The command


@pytest.mark.slow
def test_a_run(exported_fp32: Exported, tmp_path: Path) -> None:
    settings, folder = exported_fp32.settings, exported_fp32.bundle.folder
    command = [sys.executable, "-m", "dsd_trt", "bench", "--bundle", str(folder)]
    command += ["--model", settings.model, "--adapter", str(settings.adapter)]
    command += ["--contenders", "openvino-matrix,openvino,torch-batched"]
    command += ["--images", "2", "--texts", "3", "--rounds", "1", "--requests", "10"]
    command += ["-o", str(tmp_path / "b.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert re.search(r"PyTorch FP32 \| \S+ x \| 1\.00 x \|", run.stdout)
    found = json.loads((tmp_path / "b.json").read_text("utf-8"))
    assert found["contenders"].keys() == {"openvino-matrix", "openvino", "torch-batched"}
    assert found["contenders"]["openvino-matrix"]["passes"] == 2 * 2  # one an image and level
    ours, theirs = found["contenders"]["openvino"], found["contenders"]["torch-batched"]
    assert np.shape(ours["scores"]) == (2, 3)
    assert np.ptp(ours["scores"]) > 1e-3
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-5)
    for it in (ours, theirs):
        assert it["passes"] == 2 * 3 * 2
        graph = exported_fp32.bundle.manifest.graphs["pair_scorer"]
        counted = count_macs(exported_fp32.bundle.path(graph.file), graph)
        assert it["macs"] == 12 * counted
        assert len(it["encode_seconds"]) == len(it["score_seconds"]) == 1
        assert 0 < it["score_seconds"][0] < 60
        assert it["latency"]["requests"] == len(it["request_seconds"]) == 10
        assert 0 < it["latency"]["p50_ms"] <= it["latency"]["p90_ms"] < 60_000
        assert it["latency"]["p99_ms"] is None
        assert 30 < it["peak_mib"] < 8000
        memory = it["memory"]
        assert 10 < memory["private_mib"] < it["peak_mib"] * 1.5  # which lasts to the rounds' end
        assert 10 < memory["mapped_mib"] < 8000
    assert theirs["peak_mib"] > ours["peak_mib"]
    assert found["peaks"]["fp32"] > 1e9
    assert found["cold_start"][0] > 0


def test_a_contender_nobody_knows_is_refused(exported_fp32: Exported) -> None:
    command = [sys.executable, "-m", "dsd_trt", "bench", "--contenders", "openvino,abacus"]
    command += ["--bundle", str(exported_fp32.bundle.folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "no contender 'abacus'" in run.stderr
