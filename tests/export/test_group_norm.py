"""Group norms in rows: the same numbers, of shapes that engines on CPUs are fast at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.export.trace import trace
from dsd_trt.export.weights import WeightFile


class Norms(nn.Module):
    """Feature maps of two sizes, and a row of pixels, as a VAE's attention has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.row = (nn.GroupNorm(4, 8, eps=1e-5) for _ in range(3))
        for norm in (self.first, self.second, self.row):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.first(x))  # (B, 8, 6, 4)
        x = self.second(x[:, :, ::2])  # (B, 8, 3, 4)
        return self.row(x.flatten(2))  # (B, 8, 12)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Norms, Path]:
    torch.manual_seed(0)
    module, folder = Norms(), tmp_path_factory.mktemp("norms")
    graph = Graph(
        "norms.onnx",
        (TensorSpec("x", "float32", ("B", 8, 6, 4)),),
        (TensorSpec("y", "float32", ("B", 8, 12)),),
    )
    with WeightFile(folder) as weights:
        onnx.save(trace(module, graph, weights), folder / "norms.onnx")
    return module, folder / "norms.onnx"


@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_computes_what_the_module_does(traced: tuple[Norms, Path], batch: int) -> None:
    module, path = traced
    x = torch.randn(batch, 8, 6, 4)
    with torch.no_grad():
        expected = module(x).numpy()
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_scales_and_shifts_work_on_rows(traced: tuple[Norms, Path]) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(traced[1]))
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        for value in (*model.graph.value_info, *model.graph.output)
    }
    for kind, activations in (("Add", 0), ("Mul", 1)):  # silu multiplies once more
        made = [shapes[node.output[0]] for node in model.graph.node if node.op_type == kind]
        assert made[0] == [8, 1, 24]
        assert made[1 + activations] == [8, 1, 12]
        assert len(made[2 + activations]) == 2  # was a row before
