from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from dsd_trt.agreement import compare, spearman, top1_agreement
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.folder import Bundle, write_bundle
from dsd_trt.engine.onnxruntime.cpu import OnnxRuntimeEngine
from dsd_trt.export.emulation import emulate_half
from dsd_trt.export.modules import drop_weights
from dsd_trt.export.parity import ParityError, check_parity, emulated_bundle, measure
from dsd_trt.export.probe import draw_probe
from dsd_trt.export.recipe import Recipe
from dsd_trt.export.reference import Expected, Reference
from dsd_trt.export.trace import module_of
from dsd_trt.train.scoring.matrix import MatrixScorer

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)

HALF = TensorProto.FLOAT16

# Rank statistics


def test_spearman_sees_order_alone() -> None:
    x = np.array([0.1, 0.7, 0.2, 0.9, 0.4])
    assert spearman(x, np.exp(5 * x)) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)


def test_spearman_with_ties_is_the_textbooks() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: r = 4.5 / sqrt(4.5 * 5), by hand.
    assert spearman(np.array([1.0, 5, 5, 9]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9**0.5)


def test_spearman_without_ties_is_the_difference_formula() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.permutation(50), rng.permutation(50)
    squares = ((a - b) ** 2).sum()
    assert spearman(a * 1.0, b * 1.0) == pytest.approx(1 - 6 * squares / (50 * (50**2 - 1)))


def test_spearman_of_what_has_no_order_is_no_number() -> None:
    x = np.array([0.1, 0.2, 0.3])
    assert np.isnan(spearman(x, np.ones(3)))
    assert np.isnan(spearman(x, np.array([0.1, np.nan, 0.3])))


def test_top1_counts_rows_and_columns_and_no_ties() -> None:
    a = np.array([[3.0, 1, 2], [0, 5, 1]])
    assert top1_agreement(a, a + 10) == 1
    swapped = np.array([[1.0, 3, 2], [0, 5, 1]])  # another winner in the first row alone
    assert top1_agreement(swapped, a) == pytest.approx(4 / 5)
    tied = np.array([[3.0, 3, 2], [0, 5, 1]])
    assert top1_agreement(tied, a) == pytest.approx(4 / 5)
    assert top1_agreement(tied, tied) == pytest.approx(4 / 5)
    assert top1_agreement(np.full((2, 3), np.nan), a) == 0


def test_compare_reports_the_largest_difference() -> None:
    a = np.array([[0.25, 0.5], [0.75, 1.0]])
    b = a.copy()
    b[1, 0] += 0.125
    assert compare(b, a).max_difference == 0.125


# FP16, emulated


def test_emulation_rounds_as_half_precision_arithmetic_does() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 64)).astype(np.float16)
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "x"], ["sum"]),
        helper.make_node("Mul", ["sum", "sum"], ["square"]),
        helper.make_node("Cast", ["square"], ["island"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["island", "third"], ["exact"]),
        helper.make_node("Cast", ["exact"], ["y"], to=TensorProto.FLOAT16),
    ]
    third = np.float32(1 / 3)
    model = _model(nodes, {"w": weight, "third": third}, "square", "exact", "y")

    emulate_half(model)

    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    square, exact, y = _run(model, x.astype(np.float32))
    total = x * weight + x  # numpy rounds every FP16 operation
    assert np.array_equal(square, (total * total).astype(np.float32))
    assert np.array_equal(exact, (total * total).astype(np.float32) * third)  # not rounded
    assert np.array_equal(y, exact.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("frugal", [False, True])
def test_emulation_survives_the_engine_that_measures(frugal: bool, tmp_path: Path) -> None:
    """ONNX Runtime keeps the pairs of casts that round; OpenVINO 2026.4 leaves them out."""
    x = np.array([1 + 2**-12, 1 / 3, 70_000], np.float32)
    model = _model([helper.make_node("Add", ["x", "x"], ["y"])], {}, "y")
    emulate_half(model)
    path = tmp_path / "rounded.onnx"
    onnx.save(model, path)
    specs = [(TensorSpec(name, "float32", ("n",)),) for name in "xy"]
    found = OnnxRuntimeEngine(path, Graph(path.name, *specs), frugal=frugal).run({"x": x})["y"]
    with np.errstate(over="ignore"):
        wanted = (x.astype(np.float16) + x.astype(np.float16)).astype(np.float32)
    assert np.array_equal(found, wanted)
    # Should it come to keep them, FP16 can be emulated on it, too.
    assert not np.array_equal(ov.Core().compile_model(path, "CPU")(x)[0], wanted)


def test_emulation_overflows_where_plain_onnxruntime_does_not() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["large"]),
        helper.make_node("Div", ["large", "w"], ["y"]),
    ]
    x = np.array([1, 10, 1000], np.float16)
    model = _model(nodes, {"w": np.float16(1000)}, "y")
    assert np.array_equal(_run(model, x)[0], x)
    emulate_half(model)
    assert np.array_equal(_run(model, x.astype(np.float32))[0], [1, 10, np.inf])


# The check


@pytest.fixture(scope="module")
def recipe(exported_fp32: Exported) -> Recipe:
    return exported_fp32.load()


@pytest.fixture(scope="module")
def expected(recipe: Recipe) -> Expected:
    return Reference(recipe, batch=8).expect(draw_probe(32, 2))


@pytest.fixture(scope="module")
def few(recipe: Recipe) -> Expected:
    """Of 36 pairs: what is wrong on purpose is seen in these, too."""
    return Reference(recipe, batch=8).expect(draw_probe(32, 2, count=6))


def test_reference_does_not_depend_on_the_batch(recipe: Recipe, expected: Expected) -> None:
    alone = Reference(recipe)
    z = alone.encode_images(expected.probe.pixels[:2])
    ids, mask = alone.tokenize(expected.probe.texts[:2])
    assert np.abs(z.numpy() - expected.latent[:2]).max() < 1e-5
    scores = alone.score(z, alone.encode_texts(ids), mask)
    assert np.abs(scores - expected.scores[:2, :2]).max() < 1e-6


def test_reference_walks_an_image_once_per_level(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Reference(recipe)
    probe = draw_probe(32, 2, count=3)
    z = reference.encode_images(probe.pixels[:2])
    ids, mask = reference.tokenize(probe.texts)
    states, levels = reference.encode_texts(ids), torch.tensor([0, 1])
    with torch.no_grad():
        each = [
            [
                reference.matrix_scorer(
                    z[i : i + 1].expand(2, -1, -1, -1), levels, states[j : j + 1], mask[j : j + 1]
                ).mean()
                for j in range(3)
            ]
            for i in range(2)
        ]
    walks = 0
    whole = MatrixScorer.queries

    def counted(scorer: MatrixScorer, latent: Tensor, level: Tensor) -> list[Tensor]:
        nonlocal walks
        walks += 1
        return whole(scorer, latent, level)

    monkeypatch.setattr(MatrixScorer, "queries", counted)

    scores = reference.score_matrix(z, states, mask, [0, 1])

    assert walks == 2 * 2
    assert scores.std() > 1e-5
    assert np.abs(scores - np.array(each)).max() < 1e-6


def test_reference_of_a_small_model_computes_on_one_thread(recipe: Recipe) -> None:
    seen: set[int] = set()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        probe = draw_probe(32, 2, quick=True)
        Reference(recipe).expect(probe, lambda done, total: seen.add(torch.get_num_threads()))
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(threads)


def test_report_is_what_the_bundle_does(exported_fp32: Exported, expected: Expected) -> None:
    run = measure("again", exported_fp32.bundle, expected)
    assert exported_fp32.report.pairs == expected.scores.size == 256
    assert expected.scores.std() > 1e-3
    assert run.score.max_difference < 1e-5
    assert run.score.spearman > 0.999999
    assert exported_fp32.report.runs[0].score.max_difference < 1e-5


def test_fp16_is_judged_by_its_rounding(exported_fp16: Exported) -> None:
    plain, emulated = exported_fp16.report.runs
    assert "emulated" in emulated.engine
    assert emulated.score.max_difference > 1e-6  # FP16 rounds visibly
    assert emulated.latent > plain.latent
    assert emulated.score.spearman >= 0.999
    assert emulated.score.top1 >= 0.99


@pytest.mark.parametrize(
    "layer",
    [
        "unet.down_blocks.0.resnets.0.conv2",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v",
        "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_q",  # the last one scored
    ],
)
def test_a_wrong_weight_fails_the_check_and_its_layer_is_named(
    layer: str,
    exported_fp32: Exported,
    few: Expected,
    recipe: Recipe,
    tmp_path: Path,
) -> None:
    broken = _scale_weights(exported_fp32.bundle, tmp_path / "broken", {layer: 1.5})
    with pytest.raises(ParityError, match=rf"first layer to differ is {layer} of the pair_scorer"):
        _check(broken, few, recipe, tmp_path / "scratch")


def test_a_wrong_weight_in_an_encoder_is_named(
    exported_fp32: Exported,
    few: Expected,
    recipe: Recipe,
    tmp_path: Path,
) -> None:
    layer = "vae.encoder.mid_block.resnets.0.conv2"
    broken = _scale_weights(
        exported_fp32.bundle, tmp_path / "broken", {layer: 1.5}, "image_encoder"
    )
    with pytest.raises(ParityError, match=rf"{layer} of the image_encoder"):
        _check(broken, few, recipe, tmp_path / "scratch")


def test_an_overflow_is_seen_in_the_emulation_alone(
    exported_fp16: Exported,
    few: Expected,
    recipe: Recipe,
    tmp_path: Path,
) -> None:
    """A resnet's inner values times 2^17: its second norm takes the factor out again."""
    resnet = "unet.down_blocks.1.resnets.0"
    layers = {f"{resnet}.conv1": 2.0**17, f"{resnet}.time_emb_proj": 2.0**17}
    bundle = _scale_weights(exported_fp16.bundle, tmp_path / "overflowing", layers)

    few = replace(few, matrix=None)  # which the bundle lacks
    plain = measure("onnxruntime", bundle, few)
    assert plain.score.spearman > 0.999
    assert plain.score.max_difference < 1e-3
    with pytest.raises(
        ParityError, match=rf"emulated.*{resnet}\.(conv1|time_emb_proj).*--precision"
    ):
        _check(bundle, few, recipe, tmp_path / "scratch")


def test_emulated_bundle_leaves_the_original_alone(exported_fp16: Exported, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in exported_fp16.bundle.folder.iterdir()}
    emulated = emulated_bundle(exported_fp16.bundle, tmp_path)
    after = {path.name: path.read_bytes() for path in exported_fp16.bundle.folder.iterdir()}
    assert before == after
    for graph in emulated.manifest.graphs.values():
        loaded = onnx.load(emulated.path(graph.file), load_external_data=False).graph
        half = {value.name for value in loaded.initializer if value.data_type == HALF}
        assert half
        for node in loaded.node:  # nothing computes with what is stored in FP16
            assert not half & {*node.input} or node.op_type == "Cast"


def _check(bundle: Bundle, expected: Expected, recipe: Recipe, scratch: Path) -> None:
    scratch.mkdir()
    check_parity(bundle, expected, recipe, scratch)


def _scale_weights(
    bundle: Bundle, folder: Path, layers: dict[str, float], graph: str = "pair_scorer"
) -> Bundle:
    """A copy of a bundle with the weights and biases of some layers multiplied."""
    shutil.copytree(bundle.folder, folder)
    path = folder / bundle.manifest.graphs[graph].file
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    for layer, factor in layers.items():
        inputs = {
            casts.get(name, name)
            for node in model.graph.node
            if module_of(node) == layer
            for name in node.input
        }
        scaled = [constants[name] for name in inputs if name in constants]
        assert scaled, layer
        for tensor in scaled:
            value = numpy_helper.to_array(tensor)
            value = (value.astype(np.float32) * factor).astype(value.dtype)
            assert np.isfinite(value).all()
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    onnx.save_model(model, path)
    return write_bundle(folder, bundle.manifest)


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], *outputs: str
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n"]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    for value in model.graph.output:
        if value.name == "exact":
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _run(model: onnx.ModelProto, x: Any) -> list[Any]:
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})


# Large models


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 1e-4)])
def test_a_frugal_engine_computes_the_same(
    exported_fp32: Exported, exported_fp16: Exported, precision: str, tolerance: float
) -> None:
    """Up to the roundings of an FP16 graph, of which ONNX Runtime leaves out different ones."""
    bundle = (exported_fp32 if precision == "fp32" else exported_fp16).bundle
    dtype = np.dtype(f"float{precision[2:]}")
    rng = np.random.default_rng(0)
    manifest = bundle.manifest
    levels = len(manifest.method.noise_levels.fractions)
    feeds = {
        "latent": rng.normal(size=(4, *manifest.latent_shape)).astype(dtype),
        "level": (np.arange(4) % levels).astype(np.int32),
        "text_states": rng.normal(size=(4, 77, manifest.text_width)).astype(dtype),
        "token_mask": np.ones((4, 77), np.float32),
    }
    graph = manifest.graphs["pair_scorer"]
    path = bundle.path(graph.file)
    usual, frugal = (
        OnnxRuntimeEngine(path, graph, frugal=it).run(feeds)["score"] for it in (False, True)
    )
    assert usual.std() > 1e-5
    np.testing.assert_allclose(frugal, usual, atol=tolerance)


def test_a_module_without_its_weights_holds_none(exported_fp16: Exported) -> None:
    module = exported_fp16.load().module("pair_scorer")
    assert sum(tensor.nbytes for tensor in module.parameters()) > 100_000
    drop_weights(module)
    assert sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())) == 0
