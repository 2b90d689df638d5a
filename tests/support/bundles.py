"""Small bundles whose scores have a closed form, written with numpy beside the graphs.

The stand-in model keeps the bundle's contract and nothing else:

    latent = mean colour of each quarter of the image, in [0, 1]        (3, 2, 2)
    r_y    = TABLE[input_ids]                                           (77, D)
    S_j    = sigmoid(r_j . (PROJECTION^T mean(latent)) + LEVEL_BIAS[level])
    f      = mean of S_j over the counted tokens
    denoising error = 2 - mean of S_j over all 77 tokens
    matrix score = as f, with tanh in place of the sigmoid
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from dsd_trt.bundle.contract import Graph, Precision, graph_contract
from dsd_trt.bundle.folder import Bundle, file_entry, write_bundle
from dsd_trt.bundle.lists import Lists
from dsd_trt.bundle.manifest import (
    MANIFEST_NAME,
    Calibration,
    Manifest,
    MatrixMode,
    Preprocessing,
    Provenance,
    TokenizerSpec,
)
from dsd_trt.bundle.method import (
    HeadWeights,
    Method,
    Mode,
    NoiseLevels,
    ScoreKind,
    TokenMask,
    TrainedFor,
)
from dsd_trt.files.schema import to_plain

RESOLUTION = 8
LENGTH = 77
FRACTIONS = (0.2, 0.4, 0.8)
CALIBRATION = Calibration(a=4.0, b=-2.0)
MATRIX_CALIBRATION = Calibration(a=-3.0, b=1.0)
WEIGHT = 0.7  # weight of the denoising term
WORDS = ("!", "<bos>", "<eos>", "<unk>", "a", "red", "green", "blue", "circle", "square", "dog")
PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3

_random = np.random.default_rng(20)
TABLE = _random.normal(size=(len(WORDS), 4)).astype(np.float32)  # (vocabulary, D)
PROJECTION = _random.normal(size=(3, 4)).astype(np.float32)  # (C, D)
LEVEL_BIAS = np.array([-0.5, 0.0, 0.75], np.float32)


def token_ids(text: str) -> list[int]:
    """Token ids of a text's words, without BOS and EOS."""
    known = {word: i for i, word in enumerate(WORDS)}
    return [known.get(word, UNKNOWN) for word in text.lower().split()]


def closed_form(
    pixels: NDArray[np.uint8],
    text: str,
    levels: Sequence[int] = (0, 1, 2),
    token_mask: TokenMask = "words_eos",
    mode: Mode = "pair",
) -> float:
    """Score f(y, x) of one image, uint8 (RESOLUTION, RESOLUTION, 3), and one text, in float64."""
    words = token_ids(text)[: LENGTH - 2]
    counted = {
        "words": words,
        "words_eos": [*words, EOS],
        "all": [BOS, *words, EOS, *[PAD] * (LENGTH - 2 - len(words))],
    }[token_mask]
    color = pixels.astype(np.float64).mean(axis=(0, 1)) / 255  # (C,)
    direction = color @ PROJECTION  # (D,)
    logits = np.array(
        [TABLE[token] @ direction + LEVEL_BIAS[level] for level in levels for token in counted]
    )
    return float(np.mean(np.tanh(logits) if mode == "matrix" else 1 / (1 + np.exp(-logits))))


def probability(f: float, calibration: Calibration = CALIBRATION) -> float:
    """Match probability of a score."""
    return float(1 / (1 + np.exp(-(calibration.a * f + calibration.b))))


def denoising_term(
    pixels: NDArray[np.uint8], text: str, levels: Sequence[int] = (0, 1, 2)
) -> float:
    """Denoising term d: the unconditional text's error minus the text's error."""
    without, within = (
        2 - closed_form(pixels, words, levels, token_mask="all") for words in ("", text)
    )
    return without - within


def make_bundle(
    folder: Path,
    *,
    precision: Precision = "fp32",
    token_mask: TokenMask = "words_eos",
    score: ScoreKind = "attention",
    matrix: bool = False,
    trained_for: TrainedFor | None = None,
) -> Bundle:
    """Write a bundle of the stand-in model, with a matrix scorer if asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    denoising = score != "attention"
    graphs = graph_contract(
        precision,
        RESOLUTION,
        (3, 2, 2),
        TABLE.shape[1],
        LENGTH,
        denoising=denoising,
        matrix=matrix,
    )
    half = precision == "fp16"
    _save(folder, graphs["image_encoder"], _image_encoder(half), {})
    _save(folder, graphs["text_encoder"], _text_encoder(half), {"table": TABLE})
    _save(
        folder,
        graphs["pair_scorer"],
        _pair_scorer(denoising),
        {"projection": PROJECTION, "level_bias": LEVEL_BIAS[:, None]},
    )
    if matrix:
        constants = {"projection": PROJECTION, "level_bias": LEVEL_BIAS[:, None, None]}
        _save(folder, graphs["matrix_scorer"], _matrix_scorer(), constants)
    _tokenizer().save(str(folder / "tokenizer.json"))
    manifest = make_manifest(graphs, precision, token_mask, score)
    method = replace(manifest.method, trained_for=trained_for)
    mode = MatrixMode(MATRIX_CALIBRATION, 1) if matrix else None
    return write_bundle(folder, replace(manifest, method=method, matrix=mode))


def take_weights_from(folder: Path, location: str, *, listed: bool = True) -> Path:
    """Move the pair scorer's weights to a separate file.

    Args:
        folder: folder of the bundle.
        location: path of the weight file relative to `folder`.
        listed: whether `bundle.json` lists the file.

    Returns:
        The weight file.
    """
    path, manifest = folder / "pair_scorer.onnx", folder / MANIFEST_NAME
    model, content = onnx.load(path), b""
    for tensor in model.graph.initializer:
        raw = numpy_helper.to_array(tensor).tobytes()
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        for key, value in (("location", location), ("offset", len(content)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        content += raw
    (folder / location).write_bytes(content)
    path.write_bytes(model.SerializeToString())
    plain = json.loads(manifest.read_text("utf-8"))
    for name in (path.name, *([location] if listed else [])):
        plain["files"][name] = to_plain(file_entry(folder / name))
    manifest.write_text(json.dumps(plain), "utf-8")
    return folder / location


def give_form(folder: Path, file: str = "pair_scorer.cuda.onnx") -> Bundle:
    """Add a form for CUDA to a bundle: a copy of the pair scorer's graph."""
    shutil.copyfile(folder / "pair_scorer.onnx", folder / file)
    manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text("utf-8"))
    return write_bundle(folder, replace(manifest, cuda_form={"pair_scorer": file}))


def give_lists(bundle: Bundle, lists: Lists) -> Bundle:
    """Add measured lists to a bundle with a matrix scorer."""
    assert bundle.manifest.matrix is not None
    matrix = replace(bundle.manifest.matrix, lists=lists)
    return write_bundle(bundle.folder, replace(bundle.manifest, matrix=matrix))


def make_manifest(
    graphs: dict[str, Graph],
    precision: Precision = "fp32",
    token_mask: TokenMask = "words_eos",
    score: ScoreKind = "attention",
) -> Manifest:
    """Make the manifest of the stand-in model."""
    return Manifest(
        method=Method(
            score=score,
            denoising_weight=WEIGHT,
            score_layers=(0, 1),
            layer_names=("down.attn", "up.attn"),
            pooling="lse",
            lam=20.0,
            head_weights=HeadWeights("uniform", ((0.25, 0.25), (0.25, 0.25))),
            noise_levels=NoiseLevels(FRACTIONS, (200, 400, 800), 0),
            token_mask=token_mask,
            has_prompts=False,
            trained_for=None,
        ),
        graphs=graphs,
        precision=precision,
        tokenizer=TokenizerSpec("tokenizer.json", LENGTH, BOS, EOS, PAD),
        preprocessing=Preprocessing(RESOLUTION, "bicubic-stretch"),
        calibration=CALIBRATION,
        provenance=Provenance("stand-in", None, {}, None, {}),
    )


def _image_encoder(half: bool) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", ["pixels"], ["float_pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float_pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool",
            ["planes"],
            ["means"],
            kernel_shape=[RESOLUTION // 2] * 2,
            strides=[RESOLUTION // 2] * 2,
        ),
        helper.make_node("Constant", [], ["white"], value_float=255.0),
        helper.make_node("Div", ["means", "white"], ["fraction"]),
        _cast("fraction", "latent", half),
    ]


def _text_encoder(half: bool) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        _cast("rows", "text_states", half),
    ]


def _pair_scorer(denoising: bool) -> list[onnx.NodeProto]:
    axes = numpy_helper.from_array(np.array([2, 3], np.int64))
    last = numpy_helper.from_array(np.array([2], np.int64))
    tokens = numpy_helper.from_array(np.array([1], np.int64))
    node = helper.make_node
    error = [
        node("Constant", [], ["two"], value_float=2.0),
        node("ReduceMean", ["token_scores", "tokens"], ["mean"], keepdims=0),
        node("Sub", ["two", "mean"], ["denoising_error"]),
    ]
    return [
        node("Constant", [], ["axes"], value=axes),
        node("Constant", [], ["last"], value=last),
        node("Constant", [], ["tokens"], value=tokens),
        _cast("latent", "latent32", False),
        _cast("text_states", "states32", False),
        node("ReduceMean", ["latent32", "axes"], ["color"], keepdims=0),  # (B, C)
        node("MatMul", ["color", "projection"], ["direction"]),  # (B, D)
        node("Unsqueeze", ["direction", "last"], ["column"]),  # (B, D, 1)
        node("MatMul", ["states32", "column"], ["products"]),  # (B, 77, 1)
        node("Squeeze", ["products", "last"], ["logits"]),  # (B, 77)
        node("Gather", ["level_bias", "level"], ["bias"]),  # (B, 1)
        node("Add", ["logits", "bias"], ["biased"]),
        node("Sigmoid", ["biased"], ["token_scores"]),
        node("Mul", ["token_scores", "token_mask"], ["counted"]),
        node("ReduceSum", ["counted", "tokens"], ["sum"], keepdims=0),
        node("ReduceSum", ["token_mask", "tokens"], ["count"], keepdims=0),
        node("Div", ["sum", "count"], ["score"]),
        *(error if denoising else []),
    ]


def _matrix_scorer() -> list[onnx.NodeProto]:
    axes, tokens, last, first = (
        numpy_helper.from_array(np.array(it, np.int64)) for it in ([2, 3], [1], [2], [0])
    )
    node = helper.make_node
    return [
        node("Constant", [], ["axes"], value=axes),
        node("Constant", [], ["tokens"], value=tokens),
        node("Constant", [], ["last"], value=last),
        node("Constant", [], ["first"], value=first),
        _cast("latent", "latent32", False),
        _cast("text_states", "states32", False),
        node("ReduceMean", ["latent32", "axes"], ["color"], keepdims=0),  # (I, C)
        node("MatMul", ["color", "projection"], ["direction"]),  # (I, D)
        node("Einsum", ["direction", "states32"], ["logits"], equation="id,tkd->itk"),
        node("Gather", ["level_bias", "level"], ["bias"]),  # (I, 1, 1)
        node("Add", ["logits", "bias"], ["biased"]),
        node("Tanh", ["biased"], ["token_scores"]),  # (I, T, 77)
        node("Shape", ["token_mask"], ["width"], start=1, end=2),  # L
        node("Slice", ["token_scores", "first", "width", "last"], ["narrow"]),  # (I, T, L)
        node("Mul", ["narrow", "token_mask"], ["counted"]),
        node("ReduceSum", ["counted", "last"], ["sum"], keepdims=0),
        node("ReduceSum", ["token_mask", "tokens"], ["count"], keepdims=0),  # (T,)
        node("Div", ["sum", "count"], ["score"]),  # (I, T)
    ]


def _cast(source: str, target: str, half: bool) -> onnx.NodeProto:
    to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    return helper.make_node("Cast", [source], [target], to=to)


def _save(
    folder: Path, graph: Graph, nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]]
) -> None:
    def values(specs: Sequence[Any]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                spec.name,
                helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)),
                list(spec.shape),
            )
            for spec in specs
        ]

    body = helper.make_graph(
        nodes,
        Path(graph.file).stem,
        values(graph.inputs),
        values(graph.outputs),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / graph.file)


def _tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer
