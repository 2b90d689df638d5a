"""How large values get inside a bundle's graphs, and what FP16 leaves of room.

FP16 ends at 65,504. Whether a model fits is a matter of its weights and its inputs, and ONNX
Runtime's CPU kernels do not tell: they compute FP16 graphs in FP32. Here each graph runs in FP32,
unrounded, with the largest absolute value of everything it computes as further outputs. NaN and
infinities are counted by themselves: engines' maxima lose a NaN.
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

from dsd_trt.bundle.folder import Bundle
from dsd_trt.engine.onnxruntime import open_session
from dsd_trt.errors import InputError
from dsd_trt.export.emulation import MOVES, widen_half
from dsd_trt.export.onnx_file import load_graph, save_graph
from dsd_trt.export.probe import Probe
from dsd_trt.export.trace import module_of
from dsd_trt.export.weights import WEIGHTS_NAME
from dsd_trt.files.disk import clone_or_copy, require_room
from dsd_trt.pipeline import adapter_feed
from dsd_trt.tokenizer import Tokenizer

FP16_MAX = 65504.0
_FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}

_FIGURES = {  # that are outputs, of each value that is watched
    "largest": TensorProto.FLOAT,
    "nan": TensorProto.INT32,
    "infinite": TensorProto.INT32,
}
_BEFORE_SOFTMAX = {"Add", "Cast", "Div", "Mul", "Sub", "Where"}

Array = NDArray[Any]
Kind = Literal["attention logits", "activations"]


@dataclass(frozen=True)
class Range:
    """The largest absolute value of one value of a graph.

    Attributes:
        graph: which.
        node: that computes it, "PATH OF A MODULE/OPERATOR", or "OPERATOR after PATH".
        kind: products of queries and keys, before any mask, or anything else.
        precision: what the graph computes it in, "fp16" or "fp32".
        largest: of what is finite, over all inputs.
        nan: how many numbers were NaN, over all inputs.
        infinite: how many were infinite.
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
        """Whether FP32 holds it."""
        return not (self.nan or self.infinite)

    @property
    def fits(self) -> bool:
        """Whether its precision holds it."""
        return self.finite and (self.precision != "fp16" or self.largest < FP16_MAX)


def measure_ranges(
    bundle: Bundle, probe: Probe, scratch: Path, step: Callable[[str], None] = lambda graph: None
) -> list[Range]:
    """Run every graph of a bundle on a probe.

    Args:
        bundle: FP32 or FP16.
        probe: images, each scored with its own text, at the probe's levels; in a matrix scorer,
            with all texts.
        scratch: an empty folder, with room for the weights where its disk does not clone.
        step: told which graph is run.

    Returns:
        One a computed value, in the graphs' order.
    """
    manifest = bundle.manifest
    tokens = Tokenizer(
        bundle.path(manifest.tokenizer.file), manifest.tokenizer, manifest.method.token_mask
    )(probe.texts)
    _copy_weights(bundle.path(WEIGHTS_NAME), scratch / WEIGHTS_NAME)
    found: list[Range] = []

    def run(name: str, feeds: Iterable[dict[str, Array]]) -> list[Array]:
        """Note the ranges of a graph; its first output for each of the feeds."""
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
    """The largest of each kind and precision; the first that is not finite is larger than all."""
    largest: dict[tuple[str, str], Range] = {}
    for found in ranges:
        before = largest.setdefault((found.kind, found.precision), found)
        if before.finite and (not found.finite or found.largest > before.largest):
            largest[found.kind, found.precision] = found
    return list(largest.values())


def first_not_finite(ranges: Iterable[Range]) -> Range | None:
    """The first value, in the order of computing, with NaN or infinity: the others follow of it."""
    return next((found for found in ranges if not found.finite), None)


def _run(
    name: str, model: onnx.ModelProto, feeds: Iterable[dict[str, Array]], path: Path
) -> tuple[list[Range], list[Array]]:
    watched = _watch(model)
    save_graph(model, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # the graph's own
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
    """Let a graph compute in FP32 and tell the largest of everything it computes.

    Returns:
        Node, kind and the graph's own precision of each value that is watched, by its name.
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
            constant.update(node.output)  # of weights alone
        elif node.op_type not in MOVES:
            for value in (set(node.output) & precision.keys()) - masked:
                kind: Kind = "attention logits" if value in logits else "activations"
                watched[value] = (_place(node, made_by), kind, precision[value])
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for value in node.output:
            if value in watched:  # at once, so that the value need not be kept until the end
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

    ReduceMax of ONNX Runtime keeps a NaN in some places and loses it in others, so it is given
    finite numbers alone.
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
    """A node's name; of one outside all modules, with the nearest before it that is in one."""
    before: onnx.NodeProto | None = node
    while before is not None and not module_of(before):
        before = next((made_by[value] for value in before.input if value in made_by), None)
    return node.name if before in (node, None) else f"{node.name} after {module_of(before)}"


def _attention_logits(
    graph: onnx.GraphProto, made_by: Mapping[str, onnx.NodeProto]
) -> tuple[set[str], set[str]]:
    """Products that softmax is taken of, and what lies between: scaled, cast, or masked."""
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
