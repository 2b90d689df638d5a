"""A bundle's maps graph: the cross-attention maps that its score is pooled from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.fields import check_size, require
from dsd_trt.bundle.method import Method

NAME = "maps"
"""Name of the graph, beside those of every bundle."""
FILE_NAME = "maps.onnx"
POOLINGS = ("lse", "max")
"""Poolings that read nothing but the maps."""


@dataclass(frozen=True)
class Maps:
    """The optional graph of the maps.

    Attributes:
        file: name of its ONNX file, whose inputs and weights are the pair scorer's.
        places: rows and columns of image tokens of each scored layer.
    """

    file: str
    places: tuple[tuple[int, ...], ...]


def output_name(layer: int) -> str:
    """Name of the output with the maps of a layer, an index among the U-Net's layers."""
    return f"attention_{layer}"


def maps_graph(maps: Maps, method: Method, pair_scorer: Graph) -> Graph:
    """The maps graph's signature: one output per scored layer, (B, heads, image_tokens, 77).

    Args:
        maps: description of the graph.
        method: method of the bundle, with its scored layers and their heads.
        pair_scorer: the pair scorer's signature, whose inputs are those of the maps graph.
    """
    length = next(it.shape[1] for it in pair_scorer.inputs if it.name == "token_mask")
    heads = [len(weights) for weights in method.head_weights.values]
    outputs = tuple(
        TensorSpec(output_name(layer), "float32", ("B", count, rows * columns, length))
        for layer, count, (rows, columns) in zip(
            method.score_layers, heads, maps.places, strict=True
        )
    )
    return Graph(maps.file, pair_scorer.inputs, outputs)


def why_no_maps(method: Method) -> str | None:
    """Why a score cannot be explained by maps; None if it can be."""
    if method.score != "attention":
        return f'the score "{method.score}" has a term that no map shows'
    if method.pooling not in POOLINGS:
        return f'the pooling "{method.pooling}" reads other things than maps'
    return None


def check_maps(maps: Maps, method: Method) -> None:
    """Check constraints that types cannot express: sizes, and a score that maps explain.

    Raises:
        BundleError: a constraint is violated; the message names the field.
    """
    require((why := why_no_maps(method)) is None, NAME, f"is of no use: {why}")
    require(
        len(maps.places) == len(method.score_layers),
        f"{NAME}.places",
        "needs one entry a scored layer",
    )
    for sizes in maps.places:
        require(len(sizes) == 2, f"{NAME}.places", "must be pairs of rows and columns")
        for size in sizes:
            check_size(size, f"{NAME}.places")


def places_of(image_tokens: Sequence[int], latent: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Rows and columns of each layer's image tokens: those of the latent, halved several times.

    Args:
        image_tokens: number of image tokens of each layer.
        latent: shape of a latent, (C, h, w).

    Raises:
        ValueError: a layer has another number of image tokens.
    """
    rows, columns = latent[1:]
    known = {rows * columns: (rows, columns)}
    while rows > 1 or columns > 1:
        rows, columns = -(-rows // 2), -(-columns // 2)
        known.setdefault(rows * columns, (rows, columns))
    if lacking := [it for it in image_tokens if it not in known]:
        raise ValueError(f"a layer has {lacking[0]} image tokens, and the latent is {latent}")
    return [known[it] for it in image_tokens]
