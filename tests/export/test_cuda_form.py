"""Forms for ONNX Runtime on CUDA: the same scores, by operators that the CPU computes too."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from bundles import make_bundle
from checkpoints import write_adapter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from unets import SIDE, TEXT_WIDTH, TOKENS, random_levels, random_unet

from dsd_trt import Scorer, read_bundle, write_bundle
from dsd_trt.bundle.contract import Graph, Precision, TensorSpec, graph_contract
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.commands.main import main
from dsd_trt.errors import ModelError
from dsd_trt.export.adapt import replace_adapter
from dsd_trt.export.commands.export import export
from dsd_trt.export.cuda_form import cuda_form, form_name, in_cuda_form
from dsd_trt.export.emulation import emulate_half
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.fused_group_norm import write_out_group_norms
from dsd_trt.export.gates import split_gates
from dsd_trt.export.onnx_file import load_graph, save_graph
from dsd_trt.export.parity import ParityError, check_parity
from dsd_trt.export.probe import draw_probe
from dsd_trt.export.recipe import Recipe
from dsd_trt.export.reference import Reference
from dsd_trt.export.settings import CudaForm, ExportSettings
from dsd_trt.export.trace import trace
from dsd_trt.export.weights import WeightFile
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)

Array = NDArray[Any]
BATCHES = (1, 3)
WIDTH = 48  # of a token


class Attending(nn.Module):
    """Attention of tokens as Stable Diffusion's U-Net has it.

    Args:
        heads: number of heads, a divisor of WIDTH.
        upcast: whether attention is computed in FP32 around Casts.
        cross: whether keys and values are of half of the tokens.
    """

    def __init__(self, heads: int, *, upcast: bool = False, cross: bool = False) -> None:
        super().__init__()
        self.heads, self.upcast, self.cross = heads, upcast, cross
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        other = tokens[:, ::2] if self.cross else tokens
        q, k, v = (
            it.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for it in (self.to_q(tokens), self.to_k(other), self.to_v(other))
        )
        if self.upcast:
            q, k, v = q.float(), k.float(), v.float()
        mixed = F.scaled_dot_product_attention(q, k, v).to(tokens.dtype)
        result: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return result


class Attentions(nn.Module):
    """Several attentions of the same tokens, as wide as they are; their outputs in a row."""

    def __init__(self, *parts: Attending) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([part(tokens) for part in self.parts], dim=2)


def traced(folder: Path, module: Attentions, precision: Precision = "fp32") -> Path:
    """The graph of attentions over 6 tokens, in a file."""
    kind: Any = "float16" if precision == "fp16" else "float32"
    tokens = TensorSpec("tokens", kind, ("B", 6, WIDTH))
    mixed = TensorSpec("mixed", kind, ("B", 6, WIDTH * len(module.parts)))
    graph = Graph("attention.onnx", (tokens,), (mixed,))
    if precision == "fp16":
        module = module.half()
    with WeightFile(folder) as weights:
        save_graph(trace(module, graph, weights), folder / graph.file)
    return folder / graph.file


def form_of(path: Path, name: str = "pair_scorer", fuse: CudaForm = "attention") -> Path:
    """Write the form of a graph beside it."""
    form = cuda_form(load_graph(path), name, fuse)
    assert form is not None
    written = path.with_name(form_name(path.name))
    save_graph(form, written)
    onnx.checker.check_model(str(written), full_check=True)
    return written


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in load_graph(path).graph.node)


def outputs(path: Path, feeds: dict[str, Array]) -> list[Array]:
    return list(ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds))


def random_feeds(graph: Graph, batch: int) -> dict[str, Array]:
    """Random inputs of a graph of the contract."""
    rng = np.random.default_rng(batch)
    feeds: dict[str, Array] = {}
    for spec in graph.inputs:
        shape = spec.of_batch(TOKENS if spec.shape[-1] == "L" else batch)
        shape = (batch, TOKENS) if spec.shape == ("T", "L") else shape
        values: Array = rng.normal(size=shape)
        if spec.dtype == "uint8":
            values = rng.integers(0, 256, shape)
        elif spec.name == "level":
            values = rng.integers(0, 4, shape)
        elif spec.name == "token_mask":
            values = np.arange(shape[1]) < rng.integers(2, shape[1], (batch, 1))
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds


def types(path: Path) -> dict[str, int]:
    graph = load_graph(path).graph
    return {it.name: it.type.tensor_type.elem_type for it in graph.value_info}


# The numbers


@pytest.mark.parametrize("name", ["image_encoder", "pair_scorer"])
def test_a_form_computes_what_its_graph_computes(name: str, tmp_path: Path) -> None:
    bundle = read_bundle(Path(shutil.copytree(EMBEDDED, tmp_path / "bundle")))
    graph = bundle.manifest.graphs[name]
    path = bundle.path(graph.file)
    form = form_of(path, name)
    maps = operators(path)["Softmax"]
    cross = len(bundle.manifest.method.score_layers) if name == "pair_scorer" else 0
    assert operators(form)["MultiHeadAttention"] == maps - cross > 0
    assert operators(form)["Softmax"] == cross
    for batch in BATCHES:
        feeds = random_feeds(graph, batch)
        for got, wanted in zip(outputs(form, feeds), outputs(path, feeds), strict=True):
            assert np.abs(got - wanted).max() < 1e-5
            assert wanted.std() > 1e-3 or wanted.size < 4  # or agreement would mean nothing


def test_a_fused_attention_is_the_definition(tmp_path: Path) -> None:
    """And attention of other keys than the queries' is left in the open."""
    torch.manual_seed(0)
    parts = (Attending(1), Attending(2, cross=True), Attending(6))
    form = form_of(traced(tmp_path, Attentions(*parts)))
    fused = [it for it in load_graph(form).graph.node if it.domain == "com.microsoft"]
    assert [it.name for it in fused] == [f"parts.{i}/MultiHeadAttention" for i in (0, 2)]
    assert operators(form)["Softmax"] == 1
    tokens = 2 * np.random.default_rng(0).normal(size=(2, 6, WIDTH)).astype(np.float32)

    def project(linear: nn.Linear, values: Array) -> Array:
        weight, bias = (it.detach().double().numpy() for it in (linear.weight, linear.bias))
        return np.asarray(values.astype(np.float64) @ weight.T + bias)

    expected = []
    for part in parts:
        others = tokens[:, ::2] if part.cross else tokens
        q, k, v = project(part.to_q, tokens), project(part.to_k, others), project(part.to_v, others)
        mixed, width = np.zeros_like(q), WIDTH // part.heads
        for item, head in np.ndindex(2, part.heads):
            at = (item, slice(None), slice(head * width, (head + 1) * width))
            weights = np.exp(q[at] @ k[at].T / np.sqrt(width))
            mixed[at] = weights / weights.sum(axis=1, keepdims=True) @ v[at]
        expected.append(project(part.to_out, mixed))
    (got,) = outputs(form, {"tokens": tokens})
    assert np.abs(got - np.concatenate(expected, axis=2)).max() < 1e-5


def test_a_form_is_smaller_and_shares_every_weight(tmp_path: Path) -> None:
    bundle = read_bundle(Path(shutil.copytree(EMBEDDED, tmp_path / "bundle")))
    before = {it.name for it in bundle.folder.iterdir()}
    path = bundle.path("pair_scorer.onnx")
    graph, form = (load_graph(it).graph for it in (path, form_of(path)))
    assert {it.name for it in bundle.folder.iterdir()} == {*before, "pair_scorer.cuda.onnx"}
    assert len(form.node) < len(graph.node)
    known = {it.name: it.SerializeToString() for it in graph.initializer}
    large = [it for it in graph.initializer if it.external_data]
    kept = {it.name: it.SerializeToString() for it in form.initializer}
    assert {it.name for it in large} <= kept.keys()
    assert kept.items() <= known.items()
    computed = {value for node in form.node for value in node.output}
    assert {it.name for it in form.value_info} <= computed | kept.keys()
    named = {value for node in form.node for value in node.input if value}
    assert named <= computed | kept.keys() | {it.name for it in form.input}
    assert {it.name for it in form.initializer} <= named
    assert list(form.input) == list(graph.input)
    assert list(form.output) == list(graph.output)


# Precision


def test_attention_keeps_its_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = traced(tmp_path, Attentions(Attending(2), Attending(2, upcast=True)), "fp16")
    form = form_of(path)
    kinds = types(form)
    found = [
        {kinds[it] for it in (*node.input, *node.output)}
        for node in load_graph(form).graph.node
        if node.domain
    ]
    assert found == [{TensorProto.FLOAT16}, {TensorProto.FLOAT}]
    assert operators(form)["Cast"] == 4  # around the second one
    tokens = np.random.default_rng(0).normal(size=(2, 6, WIDTH)).astype(np.float16)
    results = []
    for file in (path, form):  # FP16's rounding emulated, as parity does it
        model = load_graph(file)
        emulate_half(model)
        save_graph(model, file)
        results += outputs(file, {"tokens": tokens.astype(np.float32)})
    assert np.abs(results[0] - results[1]).max() < 2e-3


# What stays open


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """The graph of an attention that has a form."""
    torch.manual_seed(0)
    model = load_graph(traced(tmp_path_factory.mktemp("plain"), Attentions(Attending(2))))
    assert cuda_form(model, "pair_scorer", "attention") is not None
    return model


@pytest.mark.parametrize("change", ["seen", "given out", "mixed twice", "masked", "scaled"])
def test_other_attention_stays_open(change: str, plain: onnx.ModelProto) -> None:
    """As scored attention does, whose map is pooled, and a text encoder's, which has a mask."""
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    graph = model.graph
    (softmax,) = (it for it in graph.node if it.op_type == "Softmax")
    (logits,), (seen,) = softmax.input, softmax.output
    (mixing,) = (it for it in graph.node if seen in it.input)
    (product,) = (it for it in graph.node if logits in it.output)
    if change == "seen":
        graph.node.append(helper.make_node("Identity", [seen], ["copy"]))
        graph.output.append(helper.make_empty_tensor_value_info("copy"))
    elif change == "given out":
        graph.output.append(helper.make_empty_tensor_value_info(seen))
    elif change == "mixed twice":
        mixing.input[1] = seen
    elif change == "masked":
        softmax.input[0] = "masked"
        graph.node.append(helper.make_node("Add", [logits, logits], ["masked"]))
    else:
        (scale,) = (it for it in graph.node if product.input[0] in it.output)
        (factor,) = (it for it in graph.initializer if it.name == scale.input[1])
        factor.CopyFrom(numpy_helper.from_array(np.array([0.6], np.float32), factor.name))
    with pytest.raises(ModelError, match=r"pair_scorer has no self-attention.*--cuda-form"):
        cuda_form(model, "pair_scorer", "attention")


def test_a_graph_without_image_tokens_has_no_form(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    assert (
        cuda_form(load_graph(bundle.path("image_encoder.onnx")), "image_encoder", "attention")
        is None
    )
    text_encoder = load_graph(EMBEDDED / "text_encoder.onnx")
    assert cuda_form(text_encoder, "text_encoder", "attention") is None


# Exports


def scores(bundle: Bundle, mode: Mode = "pair") -> Array:
    pictures = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), np.uint8)
    scorer = Scorer(bundle, "onnxruntime", mode=mode)
    return np.asarray(scorer.score(list(pictures), ["a red circle", "green"]).scores)


def test_an_export_with_an_adapter_as_input_has_forms(
    fed_fp32: Bundle, checkpoint_folder: Path, tmp_path: Path
) -> None:
    manifest = fed_fp32.manifest
    assert manifest.cuda_form == {
        "image_encoder": "image_encoder.cuda.onnx",
        "pair_scorer": "pair_scorer.cuda.onnx",
    }
    assert manifest.weight_files == ("weights.data",)
    plain, form = manifest.parity["runs"]
    assert form["engine"] == f"{plain['engine']}, form for CUDA"
    assert form["score"]["max_difference"] < 1e-5
    assert f"| {form['engine']} |" in (fed_fp32.folder / "MODEL_CARD.md").read_text()
    for file in manifest.cuda_form.values():
        assert operators(fed_fp32.path(file))["MultiHeadAttention"] > 0
    formed = in_cuda_form(fed_fp32)
    assert np.abs(scores(formed) - scores(fed_fp32)).max() < 1e-5

    other = write_adapter(tmp_path / "other", checkpoint_folder, seed=7)
    adapted = replace_adapter(fed_fp32, other, tmp_path / "adapted")
    assert read_bundle(adapted.folder).manifest.cuda_form == manifest.cuda_form
    assert np.abs(scores(in_cuda_form(adapted)) - scores(adapted)).max() < 1e-5
    assert np.abs(scores(adapted) - scores(fed_fp32)).max() > 1e-4


def test_a_wrong_form_fails_the_parity_check(
    fed_fp32: Bundle, pair_settings: ExportSettings, tmp_path: Path
) -> None:
    settings = replace(pair_settings, verify="quick", adapter_input=True, cuda_form="attention")
    recipe = Recipe.read(settings)
    expected = Reference(recipe).expect(draw_probe(recipe.checkpoint.resolution, 2, quick=True))
    folder = Path(shutil.copytree(fed_fp32.folder, tmp_path / "bundle"))
    path = folder / "pair_scorer.cuda.onnx"
    model = load_graph(path)
    (node, *_) = (it for it in model.graph.node if it.domain)
    (scale,) = (it for it in node.attribute if it.name == "scale")
    scale.f *= 3
    save_graph(model, path)
    bundle = write_bundle(folder, fed_fp32.manifest)
    layer = node.name.partition("/")[0]
    (tmp_path / "scratch").mkdir()
    with pytest.raises(
        ParityError, match=rf"form for CUDA: scores differ.*{layer}.*pair_scorer.*--cuda-form"
    ):
        check_parity(bundle, expected, recipe, tmp_path / "scratch")


@pytest.mark.slow  # exports
def test_the_command_writes_forms_of_both_scorers(exported_fp32: Exported, tmp_path: Path) -> None:
    """Beside graphs and weights that are the same as without them."""
    settings = exported_fp32.settings
    command = ["export", "--out", str(tmp_path / "bundle"), "--model", settings.model]
    command += ["--adapter", str(settings.adapter), "--levels", "0.2,0.8", "--verify", "quick"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--cuda-form", "attention+group-norm"])
    assert not ended.value.code
    bundle = read_bundle(tmp_path / "bundle")
    manifest, without = bundle.manifest, exported_fp32.bundle.manifest
    assert manifest.cuda_form is not None
    assert set(manifest.cuda_form) == {"image_encoder", "pair_scorer", "matrix_scorer"}
    assert without.cuda_form is None
    for name in without.graphs:
        assert manifest.graph_hash(name) == without.graph_hash(name)
    assert "com.microsoft" not in str(load_graph(bundle.path("pair_scorer.onnx")).opset_import)
    for file in manifest.cuda_form.values():
        assert min(operators(bundle.path(file))[it] for it in ("MultiHeadAttention", "GroupNorm"))
    plain, form = manifest.parity["runs"]
    assert form["engine"] == f"{plain['engine']}, form for CUDA"
    for run in (plain, form):
        assert run["score"]["max_difference"] < 1e-5
        assert run["matrix"]["max_difference"] < 1e-5


@pytest.mark.parametrize(
    ("given", "fused"),
    [
        ([], None),
        (["--cuda-form"], "attention"),
        (["--cuda-form", "attention"], "attention"),
        (["--cuda-form=attention+group-norm"], "attention+group-norm"),
    ],
)
def test_the_option_alone_fuses_attention(given: list[str], fused: str | None) -> None:
    for command in (["--out", "x", *given], [*given, "--out", "x"]):
        assert export.make_context("export", command).params["cuda_form"] == fused


@pytest.mark.slow  # exports
def test_an_fp16_export_checks_its_form_by_its_rounding(
    pair_settings: ExportSettings, tmp_path: Path
) -> None:
    settings = replace(
        pair_settings, precision="fp16", verify="quick", cuda_form="attention+group-norm"
    )
    bundle, report = export_bundle(settings, tmp_path / "bundle")
    plain, emulated, form = report.runs
    assert form.engine == f"{plain.engine}, FP16 rounding emulated, form for CUDA"
    assert emulated.engine in form.engine
    assert form.score.spearman > 0.999
    assert form.score.max_difference < 1e-2
    assert form.self_check is not None
    check = bundle.manifest.self_check
    assert check is not None
    assert check.tolerance >= form.self_check


# Every family


def module_of(
    family: str, mode: str, precision: Precision, **kind: Any
) -> tuple[nn.Module, int, int]:
    """A scorer, and the numbers of its self-attentions and of all other softmaxes."""
    unet = random_unet(family)
    scoring = ScoringUNet(unet.half() if precision == "fp16" else unet, random_levels(), **kind)
    split_gates(scoring)
    names = scoring.layer_names
    walked = len(names) if scoring.denoising else max(scoring.score_layers) + 1
    if mode == "pair":  # attributions of dynamic head weights are a softmax, too
        return scoring, walked, walked + scoring.dynamic_heads * len(scoring.score_layers)
    unconditional = torch.randn(TOKENS, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    return MatrixScorer(scoring, unconditional.to(unet.dtype), 1), walked, 2 * walked - 1


@pytest.mark.slow  # traces
@pytest.mark.parametrize(
    ("family", "mode", "precision", "kind"),
    [
        ("sd 1", "pair", "fp32", {"score_layers": [1], "dynamic_heads": True}),
        ("sd 1", "matrix", "fp32", {}),
        ("sd 2", "pair", "fp32", {"denoising": True}),
        ("sd 2", "pair", "fp16", {}),
        ("sdxl", "pair", "fp32", {"score_layers": "last:1"}),
        ("sdxl, convolutions", "pair", "fp16", {}),
    ],
)
def test_every_family_has_a_form(
    family: str, mode: str, precision: Precision, kind: dict[str, Any], tmp_path: Path
) -> None:
    module, attentions, maps = module_of(family, mode, precision, **kind)
    graphs = graph_contract(
        precision,
        64,
        (4, SIDE, SIDE),
        TEXT_WIDTH,
        TOKENS,
        denoising="denoising" in kind,
        matrix=mode == "matrix",
    )
    graph = graphs[f"{mode}_scorer"]
    with WeightFile(tmp_path) as weights:
        save_graph(trace(module, graph, weights), tmp_path / graph.file)
    path = tmp_path / graph.file
    wanted = {batch: outputs_of(path, graph, precision, batch) for batch in BATCHES}
    fused: tuple[CudaForm, ...] = ("attention", "attention+group-norm")
    for fuse in fused:
        form = form_of(path, f"{mode}_scorer", fuse)
        counted = operators(form)
        assert counted["MultiHeadAttention"] == attentions
        assert counted["Softmax"] == maps
        norms = operators(path)["InstanceNormalization"]
        assert counted["GroupNorm"] == (norms if "group-norm" in fuse else 0)
        kinds = types(form)
        for node in load_graph(form).graph.node:  # logits and maps of cross-attention
            if node.op_type == "Softmax":
                assert kinds[node.input[0]] == kinds[node.output[0]] == TensorProto.FLOAT
        for batch, values in wanted.items():
            found = outputs_of(form, graph, precision, batch)
            for got, value in zip(found, values, strict=True):
                assert np.abs(got - value).max() < (1e-5 if precision == "fp32" else 5e-3)


def outputs_of(path: Path, graph: Graph, precision: Precision, batch: int) -> list[Array]:
    """Outputs for random inputs, with FP16's rounding and without group norms for the CPU."""
    model = load_graph(path)
    feeds = random_feeds(graph, batch)
    if precision == "fp16":
        emulate_half(model)
        feeds = {
            name: it.astype(np.float32) if it.dtype == np.float16 else it
            for name, it in feeds.items()
        }
    write_out_group_norms(model)
    save_graph(model, path.with_name("emulated.onnx"))
    return outputs(path.with_name("emulated.onnx"), feeds)
