from __future__ import annotations

import errno
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import openvino as ov
import pytest
import tokenizers
import torch
from checkpoints import write_adapter, write_checkpoint
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnxscript import rewriter
from PIL import Image
from safetensors.torch import load_file

from dsd_trt import Scorer, read_bundle
from dsd_trt.bundle.contract import Graph, TensorSpec, graph_contract
from dsd_trt.bundle.manifest import Calibration
from dsd_trt.commands.main import cli
from dsd_trt.errors import InputError, ModelError
from dsd_trt.export import exporter
from dsd_trt.export.folder import check_replaceable, check_room, staged
from dsd_trt.export.onnx_file import METADATA_PREFIX
from dsd_trt.export.recipe import Recipe
from dsd_trt.export.settings import ExportSettings
from dsd_trt.export.trace import trace
from dsd_trt.export.weights import WeightFile
from dsd_trt.tokenizer import Tokenizer
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import encode_texts, read_checkpoint, token_mask
from dsd_trt.train.diffusion.encoders import TextEncoder
from dsd_trt.train.scoring.adapter import Adapter

if TYPE_CHECKING:
    from exported import Exported

pytest_plugins = ("exported",)

ROOT = Path(__file__).parents[2]
GRAPHS = ("image_encoder", "text_encoder", "pair_scorer")
TEXTS = ["a red circle", "the large yellow star is above a white ring", "b", "zebra, 42 crossing!"]


@pytest.fixture(scope="session", params=["exported_fp32", "exported_fp16"])
def exported(request: pytest.FixtureRequest) -> Exported:
    result: Exported = request.getfixturevalue(request.param)
    return result


@pytest.fixture(scope="session")
def pictures() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), np.uint8)


# The numbers


@pytest.mark.parametrize(("engine", "tolerance"), [("onnxruntime", 1e-5), ("openvino", 1e-4)])
def test_bundle_scores_as_the_pytorch_model_does(
    exported_fp32: Exported, pictures: Any, engine: str, tolerance: float
) -> None:
    recipe = exported_fp32.load()
    checkpoint = recipe.checkpoint
    scoring = recipe.build_scoring(checkpoint.unet)
    ids = checkpoint.tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    assert isinstance(checkpoint.text_encoder, TextEncoder)
    states = checkpoint.text_encoder.text_encoder(ids).last_hidden_state
    mask = token_mask(ids, checkpoint.tokenizer.eos_token_id)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = checkpoint.image_encoder.vae
    z = vae.encode(x).latent_dist.mean * vae.config["scaling_factor"]
    expected = np.zeros((len(pictures), len(TEXTS)))
    with torch.no_grad():
        for i in range(len(pictures)):
            for j in range(len(TEXTS)):
                for level in range(2):
                    score, _ = scoring(
                        z[i : i + 1], torch.tensor([level]), states[j : j + 1], mask[j : j + 1]
                    )
                    expected[i, j] += score.item() / 2
    assert expected.std() > 1e-3  # or agreement would mean nothing

    matrix = Scorer.load(exported_fp32.bundle.folder, engine=engine).score(list(pictures), TEXTS)

    assert np.abs(matrix.scores - expected).max() < tolerance


@pytest.mark.slow  # exports
@pytest.mark.parametrize(
    ("head_mode", "score", "update_rank"),
    [
        ("uniform", "denoising", 0),
        ("calibrated", "attention+denoising", 0),
        ("dynamic", "attention", 0),
        ("dynamic", "attention+denoising", 2),
        ("learned", "attention", 2),
    ],
)
def test_every_kind_of_score_is_served_as_pytorch_computes_it(
    tmp_path: Path,
    checkpoint_folder: Path,
    pictures: Any,
    head_mode: Any,
    score: Any,
    update_rank: int,
) -> None:
    adapter = write_adapter(
        tmp_path / "a",
        checkpoint_folder,
        head_mode=head_mode,
        score=score,
        update_rank=update_rank,
    )
    settings = ExportSettings(str(checkpoint_folder), adapter, levels=(0.2, 0.8), verify="quick")
    bundle, _ = exporter.export_bundle(settings, tmp_path / "bundle")
    method = bundle.manifest.method
    assert (method.score, method.head_weights.mode) == (score, head_mode)
    outputs = [spec.name for spec in bundle.manifest.graphs["pair_scorer"].outputs]
    assert ("denoising_error" in outputs) == (score != "attention")

    checkpoint = read_checkpoint(checkpoint_folder)
    scoring = build_scoring_unet(checkpoint, Adapter.load(adapter), levels=(0.2, 0.8))
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = np.zeros((len(pictures), len(TEXTS)))
    with torch.no_grad():
        vae = checkpoint.image_encoder.vae
        z = vae.encode(x).latent_dist.mean * vae.config["scaling_factor"]
        states, mask = encode_texts(checkpoint, [*TEXTS, ""])

        def respond(i: int, text: int, level: int) -> list[float]:
            """f and, where there is one, the denoising error of one pair at one level."""
            at = torch.tensor([level])
            f, _, *error = scoring(z[i : i + 1], at, states[text][None], mask[text][None])
            return [float(value) for value in (f, *error)]

        for i, j, level in np.ndindex(len(pictures), len(TEXTS), 2):
            f, *error = respond(i, j, level)
            d = respond(i, -1, level)[1] - error[0] if error else 0.0
            expected[i, j] += {"attention": f, "denoising": d}.get(score, f + 0.7 * d) / 2
    assert expected.std() > 1e-4
    for engine, tolerance in (("onnxruntime", 1e-5), ("openvino", 1e-4)):
        matrix = Scorer.load(bundle.folder, engine=engine).score(list(pictures), TEXTS)
        assert np.abs(matrix.scores - expected).max() < tolerance
        assert matrix.probabilities == pytest.approx(
            1 / (1 + np.exp(-(12 * matrix.scores - 3.0))), abs=1e-5
        )


def test_an_adapter_serves_the_score_it_was_trained_for_alone(
    tmp_path: Path, checkpoint_folder: Path, adapter_folder: Path
) -> None:
    settings = ExportSettings(str(checkpoint_folder), adapter_folder, score="denoising")
    with pytest.raises(ModelError, match='trained for the score "attention", not "denoising"'):
        exporter.export_bundle(settings, tmp_path / "bundle")


def test_a_pair_scores_the_same_alone_and_in_any_company(exported_fp32: Exported) -> None:
    session = _session(exported_fp32, "pair_scorer")
    feeds = _random_feeds(exported_fp32, 7)
    together, tokens_together = session.run(["score", "token_scores"], feeds)
    order = np.random.default_rng(5).permutation(7)
    shuffled = session.run(["score"], {name: array[order] for name, array in feeds.items()})[0]
    alone = [
        session.run(
            ["score", "token_scores"], {name: array[i : i + 1] for name, array in feeds.items()}
        )
        for i in range(7)
    ]
    assert np.abs(shuffled - together[order]).max() < 1e-6
    assert np.abs(np.concatenate([score for score, _ in alone]) - together).max() < 1e-6
    assert np.abs(np.concatenate([tokens for _, tokens in alone]) - tokens_together).max() < 1e-6


def test_static_prompts_are_merged_and_leave_no_trace(
    exported_fp32: Exported, checkpoint_folder: Path, adapter_folder: Path
) -> None:
    weights = load_file(checkpoint_folder / "unet" / "diffusion_pytorch_model.safetensors")
    prompts = load_file(adapter_folder / "adapter.safetensors")
    constants = [
        numpy_helper.to_array(t) for t in exported_fp32.graph("pair_scorer").graph.initializer
    ]

    def is_constant(wanted: Any) -> bool:
        return any(
            c.shape == w.shape and np.allclose(c, w, atol=1e-6)
            for c in constants
            for w in (wanted.numpy(), wanted.numpy().T)
        )

    layers = exported_fp32.bundle.manifest.method.layer_names
    for layer, name in enumerate(layers):
        for which, weight in (("key", "to_k"), ("value", "to_v")):
            if (layer, which) == (len(layers) - 1, "value"):
                continue  # the graph stops at the last map
            base = weights[f"{name}.attn2.{weight}.weight"].float()
            up, down = (prompts[f"prompts.{which}.{layer}.{part}"] for part in ("up", "down"))
            assert is_constant(base + up @ down)
            assert not is_constant(base)
            assert not is_constant(up)
            assert not is_constant(down)


def test_lossless_storage_changes_no_bit_on_either_engine(
    exported_fp32: Exported, tmp_path: Path
) -> None:
    stored = exported_fp32.graph("pair_scorer")
    plain = exported_fp32.graph("pair_scorer")
    _undo_lossless_storage(plain)
    halves = sum(t.data_type == TensorProto.FLOAT16 for t in stored.graph.initializer)
    assert halves > 50
    assert not any(t.data_type == TensorProto.FLOAT16 for t in plain.graph.initializer)
    feeds = _random_feeds(exported_fp32, 3)
    results = []
    for name, model in (("stored", stored), ("plain", plain)):
        path = tmp_path / f"{name}.onnx"
        onnx.save_model(model, path)
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = ov.Core().compile_model(path, "CPU", options)
        results.append(
            (
                ort.InferenceSession(path).run(["score"], feeds)[0],
                np.array(compiled(feeds)["score"]),
            )
        )
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


def test_storage_keeps_in_fp32_what_fp16_cannot_hold(tmp_path: Path) -> None:
    exact = np.linspace(-2, 2, 513, dtype=np.float32)
    constants = {
        "exact": exact,
        "negative_zero": np.where(exact == 0, np.float32(-0.0), exact),
        "rounded": exact + np.float32(1e-6),
        "too_large": exact * np.float32(2.0**16),
        "too_small": exact * np.float32(2.0**-30),
    }
    with WeightFile(tmp_path) as weights:
        stored = {name: weights.store(name, value) for name, value in constants.items()}
    halved = {name for name, tensor in stored.items() if tensor.dtype == ir.DataType.FLOAT16}
    assert halved == {"exact", "negative_zero"}
    for name, value in constants.items():
        back = stored[name].numpy().astype(np.float32)
        assert back.tobytes() == value.tobytes(), name


def test_equal_weights_are_stored_once_and_others_apart(tmp_path: Path) -> None:
    """On whole pages, whichever graphs they are of; shape does not matter, bytes do."""
    ones = np.ones((64, 64), np.float32) / 3
    with WeightFile(tmp_path) as weights:
        first = weights.store("first", ones)
        other = weights.store("other", ones + np.float32(1e-3))
        again = weights.store("again", ones.reshape(16, 256).copy())
    assert again.offset == first.offset
    assert again.numpy().shape == (16, 256)
    assert other.offset not in (None, first.offset)
    assert np.array_equal(other.numpy(), ones + np.float32(1e-3))
    for tensor in (first, other):
        assert tensor.offset is not None
        assert tensor.offset % 4096 == 0
    assert (tmp_path / "weights.data").stat().st_size == 2 * ones.nbytes


class Branching(torch.nn.Module):
    """What has to be decided for every batch that is not of one item, as libraries' code has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x if x.shape[0] == 1 else 3 * x


def test_branches_are_decided_for_batches_of_many(tmp_path: Path) -> None:
    """Traced with one item, a graph claims a dynamic batch and computes as for one item alone."""
    specs = [(TensorSpec(name, "float32", ("B", 2)),) for name in "xy"]
    with WeightFile(tmp_path) as weights:
        model = trace(Branching(), Graph("branching.onnx", *specs), weights)
    session = ort.InferenceSession(model.SerializeToString())
    for count in (2, 3, 8):
        (found,) = session.run(None, {"x": np.ones((count, 2), np.float32)})
        assert np.array_equal(found, np.full((count, 2), 3, np.float32))


# The files


def test_tracing_looks_at_each_node_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter's own optimiser lists all nodes for each node, to find halves of a tensor."""

    class Chain(torch.nn.Module):
        def __init__(self, length: int) -> None:
            super().__init__()
            self.length = length

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(self.length):
                x = x.sin()
            return torch.cat([x[:, 2:], x[:, :2]], dim=1)

    looked, look = 0, ir.Node.op_identifier

    def counted(node: ir.Node) -> Any:
        nonlocal looked
        looked += 1
        return look(node)

    monkeypatch.setattr(ir.Node, "op_identifier", counted)
    specs = (TensorSpec("x", "float32", ("B", 4)),), (TensorSpec("y", "float32", ("B", 4)),)
    rules, values = rewriter._DEFAULT_REWRITE_RULES, np.linspace(0, 1, 12, dtype=np.float32)
    seen = []
    for length in (20, 80):
        looked = 0
        with WeightFile(tmp_path) as weights:
            model = trace(Chain(length), Graph("chain.onnx", *specs), weights)
        seen.append(looked)
        session = ort.InferenceSession(model.SerializeToString())
        (got,) = session.run(None, {"x": values.reshape(3, 4)})
        expected = Chain(length)(torch.from_numpy(values.reshape(3, 4)))
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert 0 < seen[1] < 6 * seen[0]  # four times the nodes
    assert rewriter._DEFAULT_REWRITE_RULES is rules


def test_graphs_keep_the_contract(exported: Exported) -> None:
    precision = exported.settings.precision
    contract = graph_contract(precision, 32, (4, 8, 8), 32)
    for graph in contract.values():
        model = onnx.load(exported.bundle.path(graph.file), load_external_data=False)
        onnx.checker.check_model(str(exported.bundle.path(graph.file)), full_check=True)
        for values, specs in (
            (model.graph.input, graph.inputs),
            (model.graph.output, graph.outputs),
        ):
            got = [
                (
                    value.name,
                    helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                    tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
                )
                for value in values
            ]
            assert got == [(spec.name, spec.dtype, spec.shape) for spec in specs]


def test_manifest_tells_where_everything_comes_from(
    exported: Exported, checkpoint_folder: Path, adapter_folder: Path
) -> None:
    manifest = read_bundle(exported.bundle.folder).manifest
    assert manifest.precision == exported.settings.precision
    assert manifest.provenance.base_model == "tiny"
    for file, digest in manifest.provenance.weight_hashes.items():
        assert hashlib.sha256((checkpoint_folder / file).read_bytes()).hexdigest() == digest
    assert len(manifest.provenance.weight_hashes) == 3
    adapter = (adapter_folder / "adapter.safetensors").read_bytes()
    assert manifest.provenance.adapter_hash == hashlib.sha256(adapter).hexdigest()
    assert manifest.provenance.library_versions["torch"] == torch.__version__
    assert manifest.calibration == Calibration(12.0, -3.0)
    assert manifest.method.noise_levels.fractions == (0.2, 0.8)
    assert manifest.method.noise_levels.timesteps == (200, 800)
    assert manifest.method.head_weights.mode == "learned"
    saved = load_file(adapter_folder / "adapter.safetensors")
    for layer, weights in enumerate(manifest.method.head_weights.values):
        assert weights == pytest.approx(saved[f"head_weights.{layer}"].tolist(), rel=1e-6)
    assert manifest.parity["pairs"] >= 256


def test_the_self_check_holds_what_pytorch_computes(exported: Exported) -> None:
    manifest = read_bundle(exported.bundle.folder).manifest
    assert manifest.self_check is not None
    assert manifest.self_check.tolerance == {"fp32": 2e-4, "fp16": 1e-2}[manifest.precision]
    known = load_file(exported.bundle.path(manifest.self_check.file))
    recipe = exported.load()
    checkpoint = recipe.checkpoint
    pairs = [f"pair_scorer.{it.name}" for it in manifest.graphs["pair_scorer"].inputs]
    levels = range(len(manifest.method.noise_levels.fractions))
    assert known["pair_scorer.level"].tolist() == list(levels)  # every one of them
    assert {len(known[name]) for name in pairs} == {len(levels)}
    with torch.no_grad():
        computed = {
            "image_encoder.latent": checkpoint.image_encoder(known["image_encoder.pixels"]),
            "text_encoder.text_states": checkpoint.text_encoder(known["text_encoder.input_ids"]),
            "pair_scorer.score": recipe.build_scoring(checkpoint.read_unet())(
                *(it.float() if it.is_floating_point() else it for it in (known[n] for n in pairs))
            )[0],
        }
    for name, values in computed.items():
        largest = (values - known[name].float()).abs().max() / values.abs().max()
        assert largest < {"fp32": 1e-5, "fp16": 1e-3}[manifest.precision], name


def test_every_graph_explains_itself(exported: Exported) -> None:
    plain = json.loads((exported.bundle.folder / "bundle.json").read_text())
    for name in GRAPHS:
        stamped = {
            entry.key.removeprefix(METADATA_PREFIX): json.loads(entry.value)
            for entry in exported.graph(name).metadata_props
        }
        assert stamped.pop("graph") == {"name": name, **plain["graphs"][name]}
        of_matrix = {key: it for key, it in (plain["matrix"] or {}).items() if key != "calibration"}
        assert stamped == {
            key: value
            for key, value in {**plain, "matrix": of_matrix or None}.items()
            # The others are known later.
            if key not in ("graphs", "files", "self_check", "parity", "calibration", "bfloat16")
        }


def test_no_file_knows_the_machine_it_was_made_on(exported: Exported) -> None:
    places = [
        ROOT,
        Path.home(),
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(torch.__file__).parent,
    ]
    places += [exported.bundle.folder, Path(exported.settings.model)]
    traces = [str(place).encode() for place in places] + [b"site-packages", b"stack_trace"]
    for path in exported.bundle.folder.rglob("*"):
        content = path.read_bytes()
        assert not [trace for trace in traces if trace in content], path.name
        if path.suffix in (".onnx", ".json", ".md"):
            assert not re.search(rb"\w\.py\b", content), path.name


def test_files_can_be_read_by_others(exported: Exported) -> None:
    modes = {path.stat().st_mode & 0o777 for path in exported.bundle.folder.iterdir()}
    (exported.bundle.folder.parent / "probe").write_text("")
    assert modes == {(exported.bundle.folder.parent / "probe").stat().st_mode & 0o777}


def test_graphs_hold_nothing_nvidias_parser_refuses(exported: Exported) -> None:
    for name in GRAPHS:
        model = exported.graph(name)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
        assert not model.functions
        constants = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            assert node.domain == ""
            assert node.op_type not in ("NonZero", "Unique", "Attention", "If", "Loop", "Scan")
            if node.op_type.startswith("Scatter"):
                assert attributes.get("reduction", b"none") == b"none"
            if node.op_type == "Resize":
                assert attributes.get("antialias", 0) == 0
            if node.op_type.startswith("Reduce"):
                assert len(node.input) < 2 or node.input[1] in constants


def test_gigabytes_are_hashed_once(exported_fp32: Exported) -> None:
    assert "weights.data" not in exported_fp32.hashed  # but while it is written
    assert (
        exported_fp32.hashed["diffusion_pytorch_model.safetensors"] == 2
    )  # the U-Net's and the VAE's
    again = read_bundle(exported_fp32.bundle.folder)  # which verifies that the hashes are right
    assert {*again.manifest.files} == {
        path.name for path in again.folder.iterdir() if path.name != "bundle.json"
    }


def test_model_card_comes_along(exported: Exported) -> None:
    card = exported.bundle.path("MODEL_CARD.md").read_text()
    assert "tiny" in card
    assert exported.settings.precision in card
    assert "0.2, 0.8" in card


# Precision


def test_fp32_graphs_compute_in_fp32(exported_fp32: Exported) -> None:
    for name in GRAPHS:
        model = exported_fp32.graph(name)
        types = _types(model)
        halved = {node.input[0] for node in model.graph.node if node.op_type == "Cast"}
        for node in model.graph.node:
            for value in (*node.input, *node.output):
                if value and value not in halved:
                    assert types[value] not in (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def test_fp16_graph_keeps_its_islands_in_fp32(exported_fp16: Exported) -> None:
    model = exported_fp16.graph("pair_scorer")
    types = _types(model)
    producer = {output: node for node in model.graph.node for output in node.output}
    pooled = [node for node in model.graph.node if node.op_type == "Log"]
    assert len(pooled) == len(exported_fp16.bundle.manifest.method.score_layers)
    for node in pooled:  # back over exp(lambda A) and softmax to Q K^T
        chain = [node]
        while chain[-1].op_type != "MatMul":
            chain.append(producer[chain[-1].input[0]])
        sums = ["Log", "ReduceMean", "Exp", "Mul"]
        assert [n.op_type for n in chain] == [*sums, "Softmax", "MatMul"]
        for link in chain:
            assert types[link.input[0]] == types[link.output[0]] == TensorProto.FLOAT
        assert types[chain[-1].input[1]] == TensorProto.FLOAT


def test_fp16_graph_computes_the_rest_in_fp16(exported_fp16: Exported) -> None:
    for name in GRAPHS:
        model = exported_fp16.graph(name)
        types = _types(model)
        for node in model.graph.node:
            if node.op_type in ("Conv", "Gemm", "LayerNormalization", "InstanceNormalization"):
                assert types[node.output[0]] == TensorProto.FLOAT16, node.name
    model = exported_fp16.graph("pair_scorer")
    full = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    # Of the large constants only the noise stays in FP32: one tensor a level.
    assert [tuple(t.dims) for t in full if np.prod(t.dims) > 77] == [(2, 4, 8, 8)]


def test_a_vae_that_overflows_stays_in_fp32(tmp_path: Path) -> None:
    model = str(write_checkpoint(tmp_path / "upcast", force_upcast=True))
    recipe = Recipe.read(ExportSettings(model, precision="fp16"))
    graph = graph_contract("fp16", 32, (4, 8, 8), 32)["image_encoder"]
    with WeightFile(tmp_path) as weights:
        traced = trace(recipe.module("image_encoder"), graph, weights)
    types = _types(traced)
    convolutions = [node for node in traced.graph.node if node.op_type == "Conv"]
    assert convolutions
    assert all(types[node.output[0]] == TensorProto.FLOAT for node in convolutions)
    assert types["latent"] == TensorProto.FLOAT16


# The tokenizer


def test_tokenizer_gives_the_ids_transformers_gives(exported_fp32: Exported) -> None:
    checkpoint = exported_fp32.load().checkpoint
    path = exported_fp32.bundle.path("tokenizer.json")
    file = json.loads(path.read_text(encoding="utf-8"))
    assert file["truncation"] is None
    assert file["padding"] is None
    bare = tokenizers.Tokenizer.from_file(str(path))
    manifest = exported_fp32.bundle.manifest
    runtime = Tokenizer(path, manifest.tokenizer, "words_eos")
    texts = list(_nasty_texts())
    assert len(texts) >= 200
    for text in texts:
        assert bare.encode(text).ids == checkpoint.tokenizer(text).input_ids, repr(text)
    padded = checkpoint.tokenizer(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    tokens = runtime(texts)
    assert np.array_equal(tokens.input_ids, padded.numpy())
    mask = token_mask(padded, checkpoint.tokenizer.eos_token_id)
    assert np.array_equal(tokens.mask, mask.numpy())


def _nasty_texts() -> Iterator[str]:
    yield from ("a red circle", "A RED CIRCLE", "  a   red\tcircle \n", "a red circle.", "I'd've")
    yield from ("", " ", "!", "...", "''", "'s 't 're 've 'm 'll 'd", "don't", "DON'T", "it's'")
    yield from ("0", "007", "3.14159", "1,000,000", "x2", "2x", "½", "²", "Ⅷ", "٣", "१२३")
    yield from ("café", "cafe\u0301", "naïve", "Ünïcödé", "ﬁne", "ß", "İstanbul", "ΑΣ", "ǅ", "Å")
    yield from ("日本語", "赤い丸", "红色圆圈", "빨간 원", "красный круг", "دائرة حمراء", "ลูกบอล")
    yield from (
        "🔴",
        "👨‍👩‍👧‍👦",
        "👍🏽",
        "🏳️‍🌈",
        "a 🔴 circle",
        "\u200b",
        "a\u200bb",
        "a\u00a0b",
        "a\u3000b",
    )
    yield from ("&amp;", "&lt;b&gt;", "<b>bold</b>", "<|startoftext|>", "a <|endoftext|> b", "<|")
    yield from ("<|ENDOFTEXT|>", "\\n", "\x00", "\x07", "\x7f", "\ufeffbom", "\ufffd", "a\x85b")
    yield from ("word" * 100, "w " * 200, "!" * 300, "a_b_c", "snake_case", "CamelCase", "e-mail")
    yield from ("http://example.org/?q=1&r=2#x", "user@example.org", "C:\\dir", "#1 @2 $3 %4 ^5")
    draw = random.Random(7)
    alphabets = (
        "abcdefgh xyz",
        "aé日🔴 1'",
        "'\"`\u00b4\u2018\u2019 sdtm",
        "\t\n\r\v\f a",
        "01٣½² a",
        "<|>endoftxs ",
    )
    for alphabet in alphabets:
        for _ in range(25):
            yield "".join(draw.choices(alphabet, k=draw.randrange(1, 40)))
    for _ in range(25):
        yield "".join(
            chr(draw.choice((*range(32, 0xD800), *range(0xE000, 0x1F000)))) for _ in range(12)
        )


# The folder


def test_a_failed_export_leaves_nothing(
    tmp_path: Path, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> onnx.ModelProto:
        (folder,) = (it for it in tmp_path.glob(".new.*.part") if "scratch" not in it.name)
        (folder / "half-written").write_text("...")
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "trace", fail)
    with pytest.raises(KeyboardInterrupt):
        exporter.export_bundle(ExportSettings(model=str(checkpoint_folder)), tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_failed_replacement_leaves_the_old_bundle(
    tmp_path: Path, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "trace", lambda *_: 1 / 0)
    out = tmp_path / "old"
    out.mkdir()
    (out / "precious").write_text("kept")
    settings = ExportSettings(model=str(checkpoint_folder))
    with pytest.raises(InputError, match="--force"):
        exporter.export_bundle(settings, out)
    with pytest.raises(ZeroDivisionError):
        exporter.export_bundle(settings, out, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (out / "precious").read_text() == "kept"


def test_a_finished_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    for content in ("first", "second"):
        with staged(out) as (folder, scratch):
            (folder / content).write_text(content)
            (scratch / "waste").write_text("")
        assert [path.name for path in out.iterdir()] == [content]
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_must_not_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match="is a file"):
        check_replaceable(tmp_path / "file", force=True)
    check_replaceable(tmp_path / "here", force=False)  # empty
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="current"):
        check_replaceable(tmp_path, force=True)


def test_a_disk_without_room_is_refused_before_any_work(
    tmp_path: Path, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(path.stat().st_size for path in checkpoint_folder.rglob("*.safetensors"))

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=weights - 1))
    stages: list[str] = []
    settings = ExportSettings(model=str(checkpoint_folder))
    with pytest.raises(InputError, match="has room for"):
        exporter.export_bundle(settings, tmp_path / "a" / "out", stage=stages.append)
    assert stages == ["Reading the checkpoint"]
    assert not list(tmp_path.iterdir())
    check_room(tmp_path / "a" / "out", weights - 1)


def test_a_disk_that_fills_up_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    def fill(number: int) -> None:
        with staged(tmp_path / "out") as (folder, _):
            (folder / "half").write_text("written")
            raise OSError(number, "an error of the disk's")

    with pytest.raises(InputError, match="is full; nothing was left"):
        fill(errno.ENOSPC)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="an error of the disk's"):
        fill(errno.EIO)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, checkpoint_folder: Path) -> None:
    other = write_checkpoint(tmp_path / "other", seed=9)
    adapter = write_adapter(tmp_path / "adapter", other)
    settings = ExportSettings(model=str(checkpoint_folder), adapter=adapter)
    with pytest.raises(ModelError, match="another model"):
        exporter.export_bundle(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The command


def test_the_command_says_how_good_it_is_and_nothing_of_others(exported_fp16: Exported) -> None:
    out, err = exported_fp16.said
    assert "onnxruntime" in out
    assert "100.0%" in out
    assert re.search(r"^\[\d+ s\] Tracing pair_scorer$", err, re.MULTILINE)
    for chatter in ("warning", "[torch.onnx]", "torchvision", "Loading weights", "deprecated"):
        assert chatter.lower() not in (out + err).lower()


@pytest.mark.slow  # exports
def test_one_layer_of_convolutional_projections_without_an_adapter(tmp_path: Path) -> None:
    """The projections of SD 1.x; and pictures as CLIP saw them."""
    model = write_checkpoint(tmp_path / "sd1", linear=False)
    command = [str(Path(sys.executable).with_name("dsd-trt")), "export", "--model", str(model)]
    command += ["--out", "bundle", "--score-layers", "last:1", "--levels", "0.4"]
    command += ["--fair-resolution", "--verify", "quick"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    bundle = read_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert manifest.method.score_layers == (5,)
    assert manifest.method.head_weights.mode == "uniform"
    assert not manifest.method.has_prompts
    assert manifest.provenance.adapter_hash is None
    assert {path.name for path in tmp_path.iterdir()} == {"sd1", "bundle"}

    assert manifest.preprocessing.resize == "bicubic-stretch-through-224"
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    image = Image.fromarray(noise)
    shrunk = image.resize((224, 224), Image.Resampling.BICUBIC)
    scores = Scorer(bundle).score([image, shrunk], ["a dog", "a cat"]).scores
    np.testing.assert_array_equal(scores[0], scores[1])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "nowhere"], "no model"),
        (["--levels", "0.2,1.5"], "between 0 and 1"),
        (["--levels", "0.2,0.2"], "distinct"),
        (["--levels", "low"], "not a list"),
        (["--score-layers", "last:99"], "no cross-attention layers"),
        (["--adapter", "nowhere"], "no adapter folder 'nowhere'"),
        (["--precision", "int4"], "int4"),
    ],
)
def test_wrong_usage_is_exit_2(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    checkpoint_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["export", "--model", str(checkpoint_folder), "--out", "bundle", *arguments]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2
    assert complaint in result.output
    assert not list(tmp_path.iterdir())


def _session(exported: Exported, name: str) -> ort.InferenceSession:
    return ort.InferenceSession(exported.bundle.path(exported.bundle.manifest.graphs[name].file))


def _random_feeds(exported: Exported, batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    manifest = exported.bundle.manifest
    mask = np.zeros((batch, 77), np.float32)
    for i in range(batch):
        mask[i, 1 : 3 + i] = 1
    return {
        "latent": rng.standard_normal((batch, *manifest.latent_shape), np.float32),
        "level": (np.arange(batch) % 2).astype(np.int32),
        "text_states": rng.standard_normal((batch, 77, manifest.text_width), np.float32),
        "token_mask": mask,
    }


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value, worked out anew rather than read from the exporter's notes."""
    bare = onnx.ModelProto.FromString(model.SerializeToString())
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _undo_lossless_storage(model: onnx.ModelProto) -> None:
    halves = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    kept = []
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in halves:
            full = numpy_helper.to_array(halves[node.input[0]]).astype(np.float32)
            halves[node.input[0]].CopyFrom(numpy_helper.from_array(full, node.output[0]))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
