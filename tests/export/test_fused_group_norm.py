"""Fused group norms, by the operator's own definition: ONNX Runtime's CPU has no kernel of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
from torch import Tensor, nn

from dsd_trt.bundle.contract import Graph, Precision, TensorSpec
from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.export.cuda_form import cuda_form
from dsd_trt.export.emulation import emulate_half
from dsd_trt.export.fused_group_norm import write_out_group_norms
from dsd_trt.export.onnx_file import load_graph, save_graph
from dsd_trt.export.trace import trace
from dsd_trt.export.weights import WeightFile

CHANNELS = 512  # whose scales and shifts lie in the weight file


class Norms(nn.Module):
    """Group norms with a kernel: before a SiLU, before more than it, and before image tokens.

    And two without: one channel per group, and a row of pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GroupNorm(4, CHANNELS, eps=1e-5)
        self.second = nn.GroupNorm(32, CHANNELS, eps=1e-2)
        self.single = nn.GroupNorm(CHANNELS, CHANNELS)
        self.row, self.last = (nn.GroupNorm(8, CHANNELS) for _ in range(2))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        for parameter in self.second.parameters():  # stored in FP16
            parameter.data = parameter.data.half().float()

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.first(x))  # (B, C, 3, 2)
        x = self.second(x)
        x = nn.functional.silu(x) + x
        x = self.single(x)
        x = self.row(x.flatten(2)).unflatten(2, (3, 2))
        x = self.last(x)
        return x.flatten(2).transpose(1, 2)  # (B, 6, C)


class GroupNorm(OpRun):  # type: ignore[misc]
    """`com.microsoft.GroupNorm` as its schema describes it, number by number."""

    op_domain = "com.microsoft"

    def _run(
        self,
        x: NDArray[Any],
        gamma: NDArray[Any],
        beta: NDArray[Any],
        activation: int | None = None,
        channels_last: int | None = None,
        epsilon: float | None = None,
        groups: int | None = None,
    ) -> tuple[NDArray[Any]]:
        assert channels_last == 1
        assert groups is not None
        assert gamma.dtype == beta.dtype == np.float32  # all that the kernel on CUDA takes
        wide = x.astype(np.float64)  # (B, h, w, C)
        result = np.zeros_like(wide)
        per_group = x.shape[3] // groups
        for item, group in np.ndindex(len(x), groups):
            of_group = slice(group * per_group, (group + 1) * per_group)
            part = wide[item, :, :, of_group]
            normal = (part - part.mean()) / np.sqrt(part.var() + epsilon)
            result[item, :, :, of_group] = gamma[of_group] * normal + beta[of_group]
        if activation:
            result = result / (1 + np.exp(-result))
        return (result.astype(x.dtype),)


def traced(folder: Path, precision: Precision) -> tuple[Norms, Path]:
    """The module and its graph."""
    torch.manual_seed(0)
    module = Norms()
    kind: Any = {"fp32": "float32", "fp16": "float16"}[precision]
    graph = Graph(
        "norms.onnx",
        (TensorSpec("x", kind, ("B", CHANNELS, 3, 2)),),
        (TensorSpec("y", kind, ("B", 6, CHANNELS)),),
    )
    with WeightFile(folder) as weights:
        made = trace(module if precision == "fp32" else module.half(), graph, weights)
    save_graph(made, folder / graph.file)
    return module, folder / graph.file


def form_of(path: Path, folder: Path) -> Path:
    """Write the form of a graph without attention."""
    form = cuda_form(load_graph(path), "image_encoder", "attention+group-norm")
    assert form is not None
    save_graph(form, folder / "form.onnx")
    onnx.checker.check_model(str(folder / "form.onnx"), full_check=True)
    return folder / "form.onnx"


def of_kind(path: Path, operator: str) -> list[onnx.NodeProto]:
    return [node for node in load_graph(path).graph.node if node.op_type == operator]


def settings(node: onnx.NodeProto) -> dict[str, Any]:
    return {it.name: onnx.helper.get_attribute_value(it) for it in node.attribute}


@pytest.fixture(scope="module")
def norms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Norms, Path, Path]:
    """The module, its graph and its form, FP32."""
    folder = tmp_path_factory.mktemp("norms")
    module, path = traced(folder, "fp32")
    return module, path, form_of(path, folder)


def test_norms_with_a_kernel_are_fused(norms: tuple[Norms, Path, Path]) -> None:
    _, path, form = norms
    assert len(of_kind(path, "InstanceNormalization")) == 5
    assert len(of_kind(form, "InstanceNormalization")) == 2
    fused = of_kind(form, "GroupNorm")
    assert [(settings(it)["groups"], settings(it)["activation"]) for it in fused] == [
        (4, 1),
        (32, 0),
        (8, 0),
    ]
    assert [settings(it)["epsilon"] for it in fused] == pytest.approx([1e-5, 1e-2, 1e-5])
    layouts = [settings(it)["perm"] for it in of_kind(form, "Transpose")]
    assert layouts == [[0, 2, 3, 1], [0, 3, 1, 2]] * 2 + [[0, 2, 3, 1]]  # then they are tokens


@pytest.mark.parametrize("batch", [1, 3])
def test_a_form_computes_what_the_module_does(
    batch: int, norms: tuple[Norms, Path, Path], tmp_path: Path
) -> None:
    module, _, form = norms
    x = torch.randn(batch, CHANNELS, 3, 2, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = module(x).numpy()
    (found,) = ReferenceEvaluator(onnx.load(form), new_ops=[GroupNorm]).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5)

    with pytest.raises(Exception, match="Could not find an implementation for GroupNorm"):
        ort.InferenceSession(form, providers=["CPUExecutionProvider"])
    model = load_graph(form)
    write_out_group_norms(model)
    assert not any(node.domain for node in model.graph.node)
    written = form.with_name("written-out.onnx")
    save_graph(model, written)
    (found,) = ort.InferenceSession(written).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scales_and_shifts_are_those_of_the_weight_file(norms: tuple[Norms, Path, Path]) -> None:
    _, path, form = norms

    def places(file: Path) -> set[tuple[str, ...]]:
        return {
            tuple(sorted(f"{entry.key}={entry.value}" for entry in it.external_data))
            for it in load_graph(file).graph.initializer
            if it.external_data
        }

    assert places(form) == places(path)
    assert len(places(form)) >= 10  # 5 scales and 5 shifts


def test_fp16_norms_read_scales_and_shifts_in_fp32(tmp_path: Path) -> None:
    module, path = traced(tmp_path, "fp16")
    form = form_of(path, tmp_path)
    graph = load_graph(form).graph
    types = {it.name: it.type.tensor_type.elem_type for it in graph.value_info}
    for node in of_kind(form, "GroupNorm"):
        assert [types[it] for it in node.input] == [
            TensorProto.FLOAT16,
            TensorProto.FLOAT,
            TensorProto.FLOAT,
        ]
        assert types[node.output[0]] == TensorProto.FLOAT16
    x = np.random.default_rng(0).normal(size=(2, CHANNELS, 3, 2)).astype(np.float16)
    with torch.no_grad():
        expected = module.float()(torch.from_numpy(x).float()).numpy()
    model = load_graph(form)
    emulate_half(model)
    write_out_group_norms(model)
    save_graph(model, form)
    (found,) = ort.InferenceSession(form).run(None, {"x": x.astype(np.float32)})
    error = np.abs(found - expected).max()
    assert 1e-4 < error < 0.05  # FP16 rounds


def test_nodes_are_what_the_schemas_ask_for() -> None:
    schemas = {it.name: it for it in get_all_operator_schema() if it.domain == "com.microsoft"}
    form = cuda_form(
        load_graph(EMBEDDED / "pair_scorer.onnx"), "pair_scorer", "attention+group-norm"
    )
    assert form is not None
    assert {it.domain: it.version for it in form.opset_import}["com.microsoft"] == 1
    nodes = [node for node in form.graph.node if node.domain]
    assert Counter(it.op_type for it in nodes) == {"GroupNorm": 23, "MultiHeadAttention": 7}
    for node in nodes:
        schema = schemas[node.op_type]
        kinds = {key: it.type.name for key, it in schema.attributes.items()}
        given = {it.name: onnx.AttributeProto.AttributeType.Name(it.type) for it in node.attribute}
        assert given.items() <= kinds.items()
        assert {key for key, it in schema.attributes.items() if it.required} <= given.keys()
        assert schema.min_input <= len(node.input) <= schema.max_input
        assert schema.min_output <= len(node.output) <= schema.max_output
    names = [node.name for node in form.graph.node]
    assert len(set(names)) == len(names)
