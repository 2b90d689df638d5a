"""FP16 headroom: the largest absolute value of every activation of a bundle's graphs.

FP16 ends at 65,504. Whether a checkpoint fits depends on its weights and inputs. ONNX Runtime's
CPU kernels do not show it, because they compute FP16 graphs in FP32. Here each graph runs in
unrounded FP32, with the largest absolute value of every activation as a further output. NaN and
infinities are counted separately, because an engine's maximum can lose a NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dsd_trt.bundle.adapter_input import adapter_feed
from dsd_trt.bundle.folder import Bundle
from dsd_trt.engine.onnxruntime.cpu import open_session
from dsd_trt.errors import InputError
from dsd_trt.export.emulation import MOVES, widen_half
from dsd_trt.export.onnx_file import load_graph, save_graph
from dsd_trt.export.probe import Probe
from dsd_trt.export.trace import module_of
from dsd_trt.export.weights import WEIGHTS_NAME
from dsd_trt.files.disk import clone_or_copy, require_room
from dsd_trt.tokenizer import Tokenizer

FP16_MAX = 65504.0
_FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}

_FIGURES = {  # outputs that are added for each watched value
    "largest": TensorProto.FLOAT,
    "nan": TensorProto.INT32,
    "infinite": TensorProto.INT32,
}
_BEFORE_SOFTMAX = {"Add", "Cast", "Div", "Mul", "Sub", "Where"}

Array = NDArray[Any]
Kind = Literal["attention logits", "activations"]


@dataclass(frozen=True)
class Range:
    """Range of one activation of a graph.

    Attributes:
        graph: name of the graph, such as "pair_scorer".
        node: node that computes the activation, "MODULE/OPERATOR" or "OPERATOR after MODULE".
        kind: "attention logits" for products of queries and keys before any mask, otherwise
            "activations".
        precision: precision the graph computes it in, "fp16" or "fp32".
        largest: largest finite absolute value, over all inputs.
        nan: number of NaN values, over all inputs.
        infinite: number of infinite values, over all inputs.
    """

    graph: str
    node: str
    kind: Kind
    precision: str
    largest: float
    nan: int = 0
    infinite: int = 0

    @property
    def finite(self) -> bool:
        """Whether all values are finite in FP32."""
        return not (self.nan or self.infinite)

    @property
    def fits(self) -> bool:
        """Whether all values are finite in the activation's own precision."""
        return self.finite and (self.precision != "fp16" or self.largest < FP16_MAX)


def measure_ranges(
    bundle: Bundle, probe: Probe, scratch: Path, step: Callable[[str], None] = lambda graph: None
) -> list[Range]:
    """Run every graph of a bundle on a probe.

    Args:
        bundle: a verified bundle, FP32 or FP16.
        probe: images, each scored with its own text at the probe's levels; the matrix scorer
            takes all texts at once.
        scratch: empty folder, with room for the weights if its disk cannot clone files.
        step: callback `(graph)`, called with the name of the graph that runs next.

    Returns:
        One range per activation, in the graphs' order.
    """
    manifest = bundle.manifest
    tokens = Tokenizer(
        bundle.path(manifest.tokenizer.file), manifest.tokenizer, manifest.method.token_mask
    )(probe.texts)
    _copy_weights(bundle.path(WEIGHTS_NAME), scratch / WEIGHTS_NAME)
    found: list[Range] = []

    def run(name: str, feeds: Iterable[dict[str, Array]]) -> list[Array]:
        """Collect the ranges of a graph; returns its first output for each of the feeds."""
        step(name)
        model = load_graph(bundle.path(manifest.graphs[name].file))
        ranges, outputs = _run(name, model, feeds, scratch / f"{name}.onnx")
        found.extend(ranges)
        return outputs

    latents = run("image_encoder", ({"pixels": pixels[None]} for pixels in probe.pixels))
    states = run("text_encoder", ({"input_ids": ids[None]} for ids in tokens.input_ids))
    run(
        "pair_scorer",
        (
            {
                "latent": latent,
                "level": np.array([level], np.int32),
                "text_states": of_text,
                "token_mask": mask[None],
                **adapter_feed(bundle),
            }
            for latent, of_text, mask in zip(latents, states, tokens.mask, strict=True)
            for level in probe.levels
        ),
    )
    if "matrix_scorer" in manifest.graphs:
        every = {"text_states": np.concatenate(states), "token_mask": tokens.mask}
        run(
            "matrix_scorer",
            (
                {"latent": latent, "level": np.array([level], np.int32), **every}
                for latent in latents
                for level in probe.levels
            ),
        )
    return found


def _copy_weights(source: Path, target: Path) -> None:
    advice = "Name another folder in TMPDIR"
    require_room(target.parent, [source], "a copy of the weights", advice)
    try:
        clone_or_copy(source, target)
    except OSError as error:
        raise InputError(
            f"cannot copy the weights, {source.stat().st_size / 1e9:.1f} GB, to "
            f"{target.parent}: {error.strerror}. {advice}"
        ) from error


def worst(ranges: Iterable[Range]) -> list[Range]:
    """The largest range per kind and precision; the first that is not finite counts as largest."""
    largest: dict[tuple[str, str], Range] = {}
    for found in ranges:
        before = largest.setdefault((found.kind, found.precision), found)
        if before.finite and (not found.finite or found.largest > before.largest):
            largest[found.kind, found.precision] = found
    return list(largest.values())


def first_not_finite(ranges: Iterable[Range]) -> Range | None:
    """The first activation, in order of execution, with NaN or infinity; later ones follow it."""
    return next((found for found in ranges if not found.finite), None)


def _run(
    name: str, model: onnx.ModelProto, feeds: Iterable[dict[str, Array]], path: Path
) -> tuple[list[Range], list[Array]]:
    watched = _watch(model)
    save_graph(model, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # keeps the graph's order
    session = open_session(path, options, frugal=True)
    names = [output.name for output in session.get_outputs()]
    largest = np.zeros(len(watched), np.float32)
    counts = np.zeros((len(watched), 2), np.int64)  # NaN, infinite
    outputs = []
    for feed in feeds:
        values = dict(zip(names, session.run(None, feed), strict=True))
        largest = np.maximum(largest, [values[f"{value}.largest"] for value in watched])
        counts += [[values[f"{value}.nan"], values[f"{value}.infinite"]] for value in watched]
        outputs.append(values[names[0]])
    ranges = [
        Range(name, node, kind, precision, float(value), int(nan), int(infinite))
        for (node, kind, precision), value, (nan, infinite) in zip(
            watched.values(), largest, counts, strict=True
        )
    ]
    return ranges, outputs


def _watch(model: onnx.ModelProto) -> dict[str, tuple[str, Kind, str]]:
    """Widen a graph to FP32, in place, and add each activation's figures to its outputs.

    Returns:
        Node, kind and the graph's own precision of each watched value, by the value's name.
    """
    graph = model.graph
    precision = {
        value.name: _FLOATS[value.type.tensor_type.elem_type]
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type in _FLOATS
    }
    widen_half(model)
    constant = {tensor.name for tensor in graph.initializer}
    made_by = {value: node for node in graph.node for value in node.output}
    logits, masked = _attention_logits(graph, made_by)
    watched: dict[str, tuple[str, Kind, str]] = {}
    for node in graph.node:
        if set(node.input) <= constant:
            constant.update(node.output)  # computed from weights alone
        elif node.op_type not in MOVES:
            for value in (set(node.output) & precision.keys()) - masked:
                kind: Kind = "attention logits" if value in logits else "activations"
                watched[value] = (_place(node, made_by), kind, precision[value])
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for value in node.output:
            if value in watched:  # directly after it, so that the value can be freed
                nodes += _measuring(value)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        helper.make_tensor(name, TensorProto.FLOAT, [], [number])
        for name, number in (("ranges.end", np.finfo(np.float32).max), ("ranges.zero", 0.0))
    )
    graph.output.extend(
        helper.make_tensor_value_info(f"{value}.{figure}", kind, [])
        for value in watched
        for figure, kind in _FIGURES.items()
    )
    return watched


def _measuring(value: str) -> list[onnx.NodeProto]:
    """Nodes that compute the figures of a value.

    ONNX Runtime's ReduceMax keeps a NaN at some positions and loses it at others, so it is fed
    finite numbers only.
    """
    node, name = helper.make_node, value.__add__
    counting = [
        node(operator, [value], [name(f".is_{figure}")])
        for figure, operator in (("nan", "IsNaN"), ("infinite", "IsInf"))
    ]
    for figure in ("nan", "infinite"):
        counting += [
            node("Cast", [name(f".is_{figure}")], [name(f".{figure}s")], to=TensorProto.INT32),
            node("ReduceSum", [name(f".{figure}s")], [name(f".{figure}")], keepdims=0),
        ]
    return [
        *counting,
        node("Abs", [value], [name(".size")]),
        node("LessOrEqual", [name(".size"), "ranges.end"], [name(".is_finite")]),
        node("Where", [name(".is_finite"), name(".size"), "ranges.zero"], [name(".finite")]),
        node("ReduceMax", [name(".finite")], [name(".largest")], keepdims=0),
    ]


def _place(node: onnx.NodeProto, made_by: Mapping[str, onnx.NodeProto]) -> str:
    """Name of a node; outside of all modules also the nearest module before it."""
    before: onnx.NodeProto | None = node
    while before is not None and not module_of(before):
        before = next((made_by[value] for value in before.input if value in made_by), None)
    return node.name if before in (node, None) else f"{node.name} after {module_of(before)}"


def _attention_logits(
    graph: onnx.GraphProto, made_by: Mapping[str, onnx.NodeProto]
) -> tuple[set[str], set[str]]:
    """Attention logits, and the values between them and the softmax: scaled, cast or masked."""
    products: set[str] = set()
    between: set[str] = set()
    waiting = [node.input[0] for node in graph.node if node.op_type == "Softmax"]
    while waiting:
        value = waiting.pop()
        node = made_by.get(value)
        if node is None or value in products | between:
            continue
        if node.op_type == "MatMul":
            products.add(value)
        elif node.op_type in _BEFORE_SOFTMAX:
            between.add(value)
            waiting += node.input
    return products, between
