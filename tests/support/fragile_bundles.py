"""Stand-in bundles (see `bundles`) in which some inputs overflow.

    white image             its latent is infinite
    a text with "blue"      its states are NaN
    black image and "dog"   their score is infinite, in both modes

All other inputs have their closed form. Infinities are logarithms of 0, which no graph optimizer
folds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bundles
import numpy as np
import onnx
from bundles import RESOLUTION, WORDS, make_bundle
from onnx import helper, numpy_helper

from dsd_trt.bundle.folder import Bundle, write_bundle

WHITE, BLACK = (np.full((RESOLUTION, RESOLUTION, 3), value, np.uint8) for value in (255, 0))
_TINY = 1e-30  # factor of a logarithm, so small that a finite one changes no score


def make_fragile_bundle(
    folder: Path,
    *,
    blue: int = WORDS.index("blue"),
    dog: int = WORDS.index("dog"),
    **options: Any,
) -> Bundle:
    """Write a fragile bundle.

    Tokens of "blue" and "dog" may be given; other options are those of `make_bundle`.
    """
    bundle = make_bundle(folder, **options)
    node = helper.make_node
    table = bundles.TABLE.copy()
    dog_states = table[dog]
    table[blue] = np.nan
    _edit(bundle, "text_encoder", table)
    _edit(bundle, "image_encoder", None, "fraction", [node("Sub", ["white", "means"], ["gap"])])
    if bundle.manifest.precision == "fp16":
        dog_states = dog_states.astype(np.float16).astype(np.float32)
    last, second = (numpy_helper.from_array(np.array([axis], np.int64)) for axis in (2, 1))
    nodes = [
        node("Constant", [], ["dog"], value=numpy_helper.from_array(dog_states)),
        node("Constant", [], ["numbers_axis"], value=last),
        node("Constant", [], ["second_axis"], value=second),
        node("Sub", ["states32", "dog"], ["difference"]),
        node("Abs", ["difference"], ["absolute"]),
        node("ReduceSum", ["absolute", "numbers_axis"], ["distances"], keepdims=0),
        node("ReduceMin", ["distances", "second_axis"], ["distance"], keepdims=0),  # (texts,)
    ]
    for graph, keepdims in (("pair_scorer", 0), ("matrix_scorer", 1)):
        if graph in bundle.manifest.graphs:
            both = [
                node("ReduceSum", ["color", "second_axis"], ["brightness"], keepdims=keepdims),
                node("Constant", [], ["dark"], value_float=1e-6),
                node("Sub", ["brightness", "dark"], ["above"]),
                node("Relu", ["above"], ["light"]),  # (pairs,), or (images, 1)
                node("Add", ["light", "distance"], ["gap"]),
            ]
            _edit(bundle, graph, None, "score", [*nodes, *both])
    return write_bundle(folder, bundle.manifest)


def _edit(
    bundle: Bundle,
    graph: str,
    table: np.ndarray | None,
    value: str = "",
    nodes: list[onnx.NodeProto] | None = None,
) -> None:
    """Replace a graph's table, or make a value infinite where `gap` is 0."""
    path = bundle.path(f"{graph}.onnx")
    model = onnx.load(path)
    if table is not None:
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "table"))
    if nodes:
        kept = list(model.graph.node)
        (place,) = [i for i, it in enumerate(kept) if value in it.output]
        kept[place].output[0] = "sound"
        poison = [
            *nodes,
            helper.make_node("Log", ["gap"], ["logarithm"]),
            helper.make_node("Constant", [], ["tiny"], value_float=_TINY),
            helper.make_node("Mul", ["logarithm", "tiny"], ["poison"]),
            helper.make_node("Add", ["sound", "poison"], [value]),
        ]
        del model.graph.node[:]
        model.graph.node.extend([*kept[: place + 1], *poison, *kept[place + 1 :]])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
