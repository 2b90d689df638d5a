"""How large values get: against PyTorch's own, and with weights that overflow FP16."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from checkpoints import write_checkpoint
from click.testing import CliRunner
from onnx import TensorProto
from safetensors.torch import load_file, save_file

from dsd_trt.bundle.folder import Bundle, read_bundle, write_bundle
from dsd_trt.commands.main import cli
from dsd_trt.export.emulation import emulate_half
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.probe import draw_probe
from dsd_trt.export.ranges import (
    FP16_MAX,
    Range,
    _watch,
    first_not_finite,
    measure_ranges,
    worst,
)
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.diffusion.checkpoint import encode_texts

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)


@torch.no_grad()
def test_the_largest_values_are_those_pytorch_computes(
    exported_fp32: Exported, tmp_path: Path
) -> None:
    bundle = exported_fp32.bundle
    probe = draw_probe(32, 2, count=2)
    found = measure_ranges(bundle, probe, tmp_path)
    recipe = exported_fp32.load()
    checkpoint = recipe.checkpoint
    scoring = recipe.build_scoring(checkpoint.unet)
    assert scoring.prompts is not None
    unet = scoring.unet
    largest: dict[str, float] = {}

    def watch(name: str) -> None:
        def hook(module: object, inputs: object, output: torch.Tensor) -> None:
            largest[name] = max(largest.get(name, 0), float(output.abs().max()))

        unet.get_submodule(name).register_forward_hook(hook)

    names = ("conv_in", "mid_block.attentions.0.proj_out", "down_blocks.0.resnets.0.conv2")
    for name in names:
        watch(name)
    logits = [0.0] * len(scoring.layer_names)
    states, _ = encode_texts(checkpoint, list(probe.texts))
    for i in range(2):
        z = checkpoint.image_encoder(torch.from_numpy(probe.pixels[i : i + 1]))
        pi = scoring.prompts.pi(z)
        for level in range(2):
            noised = scoring.signal[level] * z + scoring.spread[level] * scoring.eps[level]
            walk = scoring.cross_attentions(
                noised, scoring.timesteps[level : level + 1], states[i : i + 1], pi
            )
            for seen in walk:
                logits[seen.layer] = max(logits[seen.layer], float(seen.logits.abs().max()))

    def of_module(name: str) -> float:
        rows = [r for r in found if r.graph == "pair_scorer" and r.node.startswith(f"unet.{name}/")]
        return rows[-1].largest  # the bias is added last

    for name in names:
        assert of_module(name) == pytest.approx(largest[name], rel=1e-3)
    of_pairs = [r for r in found if r.graph == "pair_scorer" and r.kind == "attention logits"]
    cross = [r.largest for r in of_pairs if "attn2" in r.node]
    assert cross == pytest.approx(logits, rel=1e-3)
    own = [r for r in of_pairs if "attn1" in r.node]
    assert len(own) == len(cross)
    assert all(row.fits and row.precision == "fp32" for row in found)
    assert {row.graph for row in found} == set(bundle.manifest.graphs)
    assert sum(row.graph == "matrix_scorer" for row in found) > 50


def test_an_fp16_bundle_says_what_is_in_fp16(exported_fp16: Exported, tmp_path: Path) -> None:
    found = measure_ranges(exported_fp16.bundle, draw_probe(32, 2, count=1), tmp_path)
    by_kind = {(row.kind, row.precision) for row in found if row.graph == "pair_scorer"}
    assert by_kind >= {("attention logits", "fp32"), ("activations", "fp16")}
    cross = [row for row in found if row.kind == "attention logits" and "attn2" in row.node]
    assert {row.precision for row in cross} == {"fp32"}
    assert all(0 < row.largest < FP16_MAX for row in cross)


def test_the_worst_is_the_largest_of_its_kind_and_what_is_not_finite_is_worse() -> None:
    rows = [
        Range("g", f"{nan} {value}", "activations", precision, value, nan, infinite)
        for precision in ("fp16", "fp32")
        for value, nan, infinite in ((3.0, 0, 0), (1.0, 2, 0), (0.5, 0, 1), (7.0, 0, 0))
    ]
    assert [row.node for row in worst(rows)] == ["2 1.0", "2 1.0"]
    assert [row.node for row in worst(rows[2:])] == ["0 0.5", "2 1.0"]
    assert [row.node for row in worst(rows[:1] + rows[3:5])] == ["0 7.0", "0 3.0"]
    assert [row.fits for row in rows] == [True, False, False, True] * 2
    assert first_not_finite(rows) == rows[1]
    assert first_not_finite(rows[3:5]) is None
    assert not Range("g", "n", "activations", "fp16", FP16_MAX).fits
    assert Range("g", "n", "activations", "fp32", FP16_MAX).fits


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_is_found_wherever_it_stands(value: float, tmp_path: Path) -> None:
    """In each of 192 positions: ONNX Runtime's maximum keeps a NaN in some of them alone."""
    node = onnx.helper.make_node
    shape = [2, 96]
    x, y = (
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")
    )
    graph = onnx.helper.make_graph([node("Neg", ["x"], ["y"], name="turn")], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    model.ir_version = 10
    rng = np.random.default_rng(7)
    plain = rng.normal(size=shape).astype(np.float32)
    feeds = [{"x": plain.copy()} for _ in range(plain.size)]
    for place, feed in enumerate(feeds):
        feed["x"].flat[place] = value
    expected = [np.abs(it["x"][np.isfinite(it["x"])]).max() for it in feeds]
    watched = _watch(model)
    assert [place for place, _, _ in watched.values()] == ["turn"]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "g.onnx")
    session = ort.InferenceSession(tmp_path / "g.onnx")
    figures = ["y.largest", "y.nan", "y.infinite"]
    found = np.array([session.run(figures, feed) for feed in feeds])
    assert np.array_equal(found[:, 0].astype(np.float32), np.array(expected))
    assert np.array_equal(found[:, 1], [np.isnan(value)] * plain.size)
    assert np.array_equal(found[:, 2], [np.isinf(value)] * plain.size)


def test_what_overflows_first_is_named(exported_fp16: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(exported_fp16.bundle.folder, folder)
    bundle = read_bundle(folder)
    model = onnx.load(bundle.path("pair_scorer.onnx"), load_external_data=False)
    nodes = list(model.graph.node)
    places = [i for i, it in enumerate(nodes) if it.op_type == "Conv"]
    place = places[len(places) // 2]
    # Behind a convolution in the middle: a number of every row, and not the first.
    name = nodes[place].output[0]
    (spec,) = [it for it in model.graph.value_info if it.name == name]
    width = spec.type.tensor_type.shape.dim[3].dim_value
    poison = np.zeros((1, 1, 1, width), np.float16)
    poison[..., -1] = np.nan
    nodes[place].output[0] = f"{name}.sound"
    model.graph.initializer.append(onnx.numpy_helper.from_array(poison, "poison"))
    nodes.insert(
        place + 1, onnx.helper.make_node("Add", [f"{name}.sound", "poison"], [name], name="planted")
    )
    sound = model.graph.value_info.add()
    sound.CopyFrom(spec)
    sound.name = f"{name}.sound"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, bundle.path("pair_scorer.onnx"))
    write_bundle(folder, bundle.manifest)

    (tmp_path / "scratch").mkdir()
    found = measure_ranges(read_bundle(folder), draw_probe(32, 2, count=1), tmp_path / "scratch")
    first = first_not_finite(found)
    assert first is not None
    assert (first.graph, first.node.split(" ")[0]) == ("pair_scorer", "planted")
    dims = [it.dim_value or 1 for it in spec.type.tensor_type.shape.dim]
    assert first.nan == 2 * int(np.prod(dims[1:3]))  # at two levels, the last of every row
    assert first.largest < FP16_MAX
    at = found.index(first)
    assert all(row.finite for row in found[:at])
    assert not any(row.fits for row in found[at:] if row.graph == "pair_scorer" and row.nan)

    shown = CliRunner().invoke(cli, ["ranges", str(folder), "--scenes", "1"])
    assert shown.exit_code == 0, shown.output
    assert f"NaN or infinity begins in the pair_scorer, at {first.node}: " in shown.stdout
    listed = CliRunner().invoke(cli, ["ranges", str(folder), "--scenes", "1", "-f", "json"])
    rows = json.loads(listed.stdout, parse_constant=pytest.fail)
    assert next(row for row in rows if row["nan"] or row["infinite"])["node"] == first.node


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An FP16 bundle of a model whose queries and keys, multiplied, are beyond FP16."""
    root = tmp_path_factory.mktemp("planted")
    folder = write_checkpoint(root / "model")
    (path,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(path)
    for name in tensors:
        if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
            tensors[name] = tensors[name] * 2**8
    save_file(tensors, path, {"format": "pt"})
    settings = ExportSettings(str(folder), levels=(0.4,), precision="fp16", verify="quick")
    # Attention this sharp turns on the last bit: what is asked here is whether numbers come out.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsd_trt.export.parity.MIN_SPEARMAN", -1.0)
        patch.setattr("dsd_trt.export.parity.MIN_TOP1", 0.0)
        bundle, report = export_bundle(settings, root / "bundle")
    assert "emulated" in report.runs[1].engine
    assert np.isfinite(report.runs[1].score.max_difference)
    return bundle


@pytest.mark.slow  # exports
def test_logits_beyond_fp16_stay_finite_here_and_not_in_a_naive_fp16_graph(
    planted: Bundle, tmp_path: Path
) -> None:
    found = measure_ranges(planted, draw_probe(32, 1, count=1), tmp_path)
    cross = [row for row in found if row.kind == "attention logits" and "attn2" in row.node]
    assert max(row.largest for row in cross) > FP16_MAX
    assert all(row.fits for row in found)

    ours, naive = (
        onnx.load(planted.path("pair_scorer.onnx"), load_external_data=False) for _ in range(2)
    )
    _narrow(naive)
    finite = []
    for name, model in (("ours", ours), ("naive", naive)):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(planted.path("weights.data"), folder)
        emulate_half(model)
        onnx.save(model, folder / "graph.onnx")
        finite.append(_scores_are_numbers(folder / "graph.onnx"))
    assert finite == [True, False]


def _narrow(model: onnx.ModelProto) -> None:
    """Make FP16 of everything that is computed in FP32, as a converter without islands does."""
    graph = model.graph
    for value in (*graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16


def _scores_are_numbers(path: Path) -> bool:
    session = ort.InferenceSession(path)
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in session.get_inputs():
        shape = [1, *spec.shape[1:]]
        kind = np.int32 if "int" in spec.type else np.float32
        feeds[spec.name] = rng.standard_normal(shape).astype(kind)
    feeds["level"][:] = 0
    feeds["token_mask"][:] = 1
    return bool(np.isfinite(session.run(["score"], feeds)[0]).all())


def test_command_prints_the_worst_and_every_value_as_json(exported_fp16: Exported) -> None:
    arguments = ["ranges", str(exported_fp16.bundle.folder), "--scenes", "1"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    for word in ("pair_scorer", "attention logits", "fp16", "65,504"):
        assert word in shown.stdout
    listed = CliRunner().invoke(cli, [*arguments, "-f", "json"])
    rows = json.loads(listed.stdout)
    assert len(rows) > 100
    names = {"graph", "node", "kind", "precision", "largest", "nan", "infinite", "fits"}
    assert rows[0].keys() == names
    assert all(row["fits"] for row in rows)


def test_scoring_at_the_bundles_levels_alone(exported_fp16: Exported, tmp_path: Path) -> None:
    """One level sees no more than both."""
    probe = draw_probe(32, 2, count=1)
    both = measure_ranges(exported_fp16.bundle, probe, tmp_path)
    (tmp_path / "one").mkdir()
    one = measure_ranges(exported_fp16.bundle, replace(probe, levels=(0,)), tmp_path / "one")
    assert len(one) == len(both)
    assert all(a.largest <= b.largest for a, b in zip(one, both, strict=True))
    assert any(a.largest < b.largest for a, b in zip(one, both, strict=True))
