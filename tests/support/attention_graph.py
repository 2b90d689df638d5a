"""A matrix scorer of one attention layer as ONNX, small enough to be written out in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dsd_trt.bundle.contract import Graph, TensorSpec

HEADS, DEPTH, IMAGE_TOKENS, TEXT_TOKENS, WIDTH = 2, 8, 6, 40, 5
LAMBDA = 20.0
LEAST_MASS = 0.1

_rng = np.random.default_rng(0)
LEVELS = _rng.uniform(0.5, 2, 3).astype(np.float32)
BASIS = _rng.uniform(-1, 1, (IMAGE_TOKENS, 4)).astype(np.float32) / IMAGE_TOKENS
BASIS[:, 0] = 1 / IMAGE_TOKENS
WEIGHT = _rng.normal(size=(WIDTH, HEADS * DEPTH)).astype(np.float32)

GRAPH = Graph(
    "matrix_scorer.onnx",
    (
        TensorSpec("latent", "float32", ("I", HEADS * DEPTH, 2, IMAGE_TOKENS // 2)),
        TensorSpec("level", "int32", ("I",)),
        TensorSpec("text_states", "float32", ("T", TEXT_TOKENS, WIDTH)),
        TensorSpec("token_mask", "float32", ("T", "L")),
    ),
    (TensorSpec("score", "float32", ("I", "T")),),
)


def write_attention(
    path: Path,
    *,
    start: int = 0,
    step: int = 1,
    over: int = 4,
    lam: Any = LAMBDA,
    softmax: int = 2,
    branch: bool = False,
    centres: bool = False,
    less: float = 1.0,
    columns: int = 3,
) -> Path:
    """Write the graph.

    Args:
        path: file to write.
        start: first text token that is pooled.
        step: step from one to the next.
        over: axis that is averaged over.
        lam: sharpness of Eq. 3, a number or an array.
        softmax: axis of the softmax.
        branch: whether a level's strength is added to its scores, in the branch of an `If`.
        centres: whether the maps' centres are added to token scores, as relations read them.
        less: what is taken from exponentials of maps, before their moments are made.
        columns: columns of the basis of moments.
    """
    node = helper.make_node
    constants: dict[str, NDArray[Any]] = {
        "levels": LEVELS,
        "weight": WEIGHT,
        "lambda": np.array(lam, np.float32),
        "heads_first": np.array([0, HEADS, DEPTH, IMAGE_TOKENS]),
        "columns": np.array([HEADS, DEPTH, -1]),
        "of_keys": np.array([0, 0, HEADS, DEPTH]),
        "rows": np.array([HEADS, -1, DEPTH]),
        "start": np.array([start]),
        "step": np.array([step]),
        "second": np.array([2]),
        "over": np.array([over]),
        "level_axes": np.array([1, 2, 3]),
        "heads": np.array([HEADS]),
        "tokens": np.array([TEXT_TOKENS]),
        "image_tokens": np.array([IMAGE_TOKENS]),
        "first": np.array([0]),
        "last": np.array([-1]),
        "yes": np.array(True),
    }
    if centres:
        constants |= {
            "less": np.array(less, np.float32),
            "basis": BASIS[:, :columns],
            "one": np.array([1]),
            "end": np.array([columns]),
            "least": np.array(LEAST_MASS, np.float32),
            "heads_and_columns": np.array([0, 4]),
        }
    nodes = [
        node("Gather", ["levels", "level"], ["strength"]),
        node("Unsqueeze", ["strength", "level_axes"], ["strengths"]),
        node("Mul", ["latent", "strengths"], ["states"]),
        node("Reshape", ["states", "heads_first"], ["by_head"]),
        node("Transpose", ["by_head"], ["images_third"], perm=[1, 2, 0, 3]),
        node("Reshape", ["images_third", "columns"], ["queries"]),  # (heads, depth, I * n)
        node("Shape", ["latent"], ["I"], end=1),
        node("MatMul", ["text_states", "weight"], ["projected"]),
        node("Reshape", ["projected", "of_keys"], ["apart"]),
        node("Transpose", ["apart"], ["text_second"], perm=[2, 0, 1, 3]),
        node("Reshape", ["text_second", "rows"], ["keys"]),  # (heads, T * tokens, depth)
        node("Shape", ["text_states"], ["T"], end=1),
        node("Shape", ["token_mask"], ["L"], start=1, end=2),
        node("MatMul", ["keys", "queries"], ["product"]),
        node("Concat", ["heads", "T", "tokens", "last"], ["of_logits"], axis=0),
        node("Reshape", ["product", "of_logits"], ["logits"]),
        node("Softmax", ["logits"], ["attention"], axis=softmax),
        node("Slice", ["attention", "start", "L", "second", "step"], ["counted"]),
        node("Concat", ["heads", "T", "L", "I", "image_tokens"], ["sizes"], axis=0),
        node("Reshape", ["counted", "sizes"], ["maps"]),
        node("Mul", ["maps", "lambda"], ["scaled"]),
        node("Exp", ["scaled"], ["sharp"]),
        node("ReduceMean", ["sharp", "over"], ["mean"], keepdims=0),  # (heads, T, L, I)
        node("Log", ["mean"], ["log"]),
        node("ReduceSum", ["log", "first"], ["logs"], keepdims=0),  # (T, L, I)
        *(
            [
                node("Sub", ["sharp", "less"], ["above"]),
                node("MatMul", ["above", "basis"], ["moments"]),  # (heads, T, L, I, columns)
                node("Slice", ["moments", "one", "end", "over"], ["placed"]),
                node("Slice", ["moments", "first", "one", "over"], ["mass"]),
                node("Clip", ["mass", "least"], ["enough"]),
                node("Div", ["placed", "enough"], ["centres"]),
                node("ReduceSum", ["centres", "heads_and_columns"], ["located"], keepdims=0),
                node("Add", ["logs", "located"], ["token_scores"]),
            ]
            if centres
            else [node("Identity", ["logs"], ["token_scores"])]
        ),
        node("Transpose", ["token_scores"], ["by_image"], perm=[2, 0, 1]),
        node("Mul", ["by_image", "token_mask"], ["those"]),
        node("ReduceSum", ["those", "last"], ["sum"], keepdims=0),
        node("ReduceSum", ["token_mask", "last"], ["number"], keepdims=0),
        node("Div", ["sum", "number"], ["whole"]),
    ]
    if branch:
        added, left = (
            helper.make_tensor_value_info(it, TensorProto.FLOAT, ["I", "T"])
            for it in ("added", "left")
        )
        more = [
            node("Unsqueeze", ["strength", "last"], ["column"]),
            node("Add", ["whole", "column"], ["added"]),
        ]
        none = [node("Identity", ["whole"], ["left"])]
        branches = {
            "then_branch": helper.make_graph(more, "then", [], [added]),
            "else_branch": helper.make_graph(none, "else", [], [left]),
        }
        nodes.append(node("If", ["yes"], ["score"], **branches))
    else:
        nodes.append(node("Identity", ["whole"], ["score"]))

    def values(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
        kinds = (helper.np_dtype_to_tensor_dtype(np.dtype(it.dtype)) for it in specs)
        return [
            helper.make_tensor_value_info(it.name, kind, list(it.shape))
            for it, kind in zip(specs, kinds, strict=True)
        ]

    weights = [numpy_helper.from_array(it, name) for name, it in constants.items()]
    body = helper.make_graph(nodes, "scorer", values(GRAPH.inputs), values(GRAPH.outputs), weights)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def feeds_of(rows: int, texts: int, width: int) -> dict[str, NDArray[Any]]:
    """Random inputs; texts have 1 to `width` tokens that count."""
    rng = np.random.default_rng(rows + 100 * texts)
    lengths = rng.integers(1, width + 1, texts)
    return {
        "latent": rng.normal(size=(rows, HEADS * DEPTH, 2, IMAGE_TOKENS // 2)).astype(np.float32),
        "level": rng.integers(0, len(LEVELS), rows).astype(np.int32),
        "text_states": rng.normal(size=(texts, TEXT_TOKENS, WIDTH)).astype(np.float32),
        "token_mask": (np.arange(width) < lengths[:, None]).astype(np.float32),
    }


def by_formula(
    feeds: dict[str, NDArray[Any]],
    branch: bool = False,
    centres: bool = False,
    less: float = 1.0,
    columns: int = 3,
) -> NDArray[np.float64]:
    """Scores in double precision, one pair and head at a time."""
    rows, texts = len(feeds["level"]), len(feeds["token_mask"])
    latent, width = feeds["latent"].astype(np.float64), feeds["token_mask"].shape[1]
    scores = np.zeros((rows, texts))
    queries = latent * LEVELS[feeds["level"], None, None, None]
    keys = feeds["text_states"].astype(np.float64) @ WEIGHT
    for i, j, head in np.ndindex(rows, texts, HEADS):
        part = slice(head * DEPTH, (head + 1) * DEPTH)
        logits = keys[j, :, part] @ queries[i, part].reshape(DEPTH, -1)
        attention = np.exp(logits - logits.max(axis=0))
        attention /= attention.sum(axis=0)
        sharp = np.exp(LAMBDA * attention)
        pooled = np.log(sharp.mean(axis=1))[:width]
        if centres:
            moments = (sharp[:width] - less) @ BASIS[:, :columns].astype(np.float64)
            mass = np.maximum(moments[:, :1], LEAST_MASS)
            pooled += (moments[:, 1:] / mass).sum(axis=1)
        scores[i, j] += pooled @ feeds["token_mask"][j] / feeds["token_mask"][j].sum()
    return scores + branch * LEVELS[feeds["level"], None]
