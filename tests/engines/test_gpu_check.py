"""`dsd-trt gpu-check`, as far as it goes without a GPU: arithmetic, the report, the way there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorrt_rtx
from bundles import make_bundle
from click.testing import CliRunner
from fake_gpu import FakeCuda, FakeTensorRT
from onnx import TensorProto, helper, numpy_helper

import dsd_trt.engine.cuda as cuda_module
import dsd_trt.engines.gpu_check as module
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.commands.main import cli
from dsd_trt.engine.tensorrt.plan import Profile, Sidecar, write_plan
from dsd_trt.engines.gpu_check import check_gpu, write_report
from dsd_trt.engines.macs import count_macs
from dsd_trt.engines.network import create_network, parse
from dsd_trt.errors import InputError

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
    network, graph = module._product(create_network(tensorrt_rtx))
    assert count_macs(network, graph) == 4096**3


# The whole way, on the stand-in


def test_the_report_has_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    cuda = FakeCuda()
    cuda.milliseconds = 40.0
    monkeypatch.setattr(cuda_module, "cudart", cuda)
    sessions = {
        name: ort.InferenceSession(bundle.path(graph.file))
        for name, graph in bundle.manifest.graphs.items()
    }
    profile = Profile(1, 8, 32)
    for name in sessions:
        content = b"plan " + name.encode()
        sidecar = Sidecar.of(
            memoryview(content), bundle.manifest, name, "tensorrt", "10.13.3", ("8.6",), (profile,)
        )
        write_plan(bundle.folder, memoryview(content), sidecar)

    class Library(FakeTensorRT):
        """Computes the graph whose plan it is given."""

        def _deserialise(self, plan: bytes) -> Any:
            name = plan.removeprefix(b"plan ").decode()
            graph, session = bundle.manifest.graphs[name], sessions[name]
            names = [spec.name for spec in graph.outputs]

            def compute(arrays: Any) -> dict[str, Any]:
                inputs = {spec.name: arrays[spec.name] for spec in graph.inputs}
                return dict(zip(names, session.run(names, inputs), strict=True))

            return FakeTensorRT(cuda, graph, compute, ((1, 32),))._deserialise(plan)

    graph = bundle.manifest.graphs["pair_scorer"]
    monkeypatch.setitem(sys.modules, "tensorrt", Library(cuda, graph, dict, ((1, 32),)))
    monkeypatch.setattr(module, "parse", lambda trt, path: None)
    monkeypatch.setattr(module, "count_macs", lambda network, graph: 10**9)
    monkeypatch.setattr(module, "_measure_peak", lambda library, description: 32e12)
    stages: list[str] = []
    report = check_gpu(bundle, "tensorrt", profile, stages.append)
    assert report.build_seconds == 0  # every plan was there
    assert report.max_difference < 1e-6
    assert report.same_order == 1
    assert report.pass_milliseconds == pytest.approx(40 / 20)
    assert report.pass_tflops == pytest.approx(2 * 8 * 1e9 / 2e-3 / 1e12)
    assert report.share_of_peak == pytest.approx(0.25)
    assert report.pairs_per_second > 0
    assert report.memory_bytes > 0
    assert stages[-1] == "Timing"

    write_report(report, tmp_path / "gpu")
    plain = json.loads((tmp_path / "gpu.json").read_text())
    assert plain["engine"] == "tensorrt 10.13.3 on GPU of compute capability 8.6, fp32"
    assert plain["share_of_peak"] == pytest.approx(0.25)
    text = (tmp_path / "gpu.md").read_text()
    assert "| U-Net pass, batch 8 | 2.00 ms |" in text
    assert "| share of that peak | 25.0% |" in text
    with pytest.raises(InputError, match="cannot write"):
        write_report(report, tmp_path / "nowhere" / "gpu")


def test_without_a_gpu_nothing_is_built(exported_fp16: Exported, tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    command = ["gpu-check", str(exported_fp16.bundle.folder), "--engine", "tensorrt-rtx"]
    result = CliRunner().invoke(cli, [*command, "--out", str(out)])
    assert result.exit_code == 4
    assert "no CUDA device" in result.output
    assert not list(tmp_path.iterdir())
    assert not (exported_fp16.bundle.folder / "engines").exists()
