"""Layers of a parsed TensorRT network: their types, the scores' precision, and attention's form.

Precision is read back here rather than requested. A strongly typed network computes in the types
of its graph, so the parsed network shows what the plan will do. The one exception is the inside of
a normalisation layer, whose precision the library chooses and does not report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dsd_trt.bundle.manifest import Manifest
from dsd_trt.engine.tensorrt.plan import Part, title_of
from dsd_trt.engines.network import Network
from dsd_trt.errors import LayerPrecisionError, counted

MIN_HALF = 0.95
"""Least share of FP16 among an FP16 graph's matrix products and convolutions.

Scored attention logits do not count: they have to be FP32, and are one in fifteen products of
Stable Diffusion XL.
"""

_SCORES = ("score", "token_scores")
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")
_FLOATS = ("FLOAT", "HALF", "BF16")
_SHAPES = ("SHUFFLE", "CAST", "IDENTITY", "SQUEEZE", "UNSQUEEZE")  # values stay the same


@dataclass(frozen=True)
class Layer:
    """One layer of a parsed network.

    Attributes:
        name: name of the layer, after the ONNX node it comes from.
        kind: layer type in TensorRT's terms, such as "MATRIX_MULTIPLY".
        dtype: type of the first output in TensorRT's terms, such as "HALF".
        inputs: names of the tensors it reads.
        outputs: names of the tensors it computes.
    """

    name: str
    kind: str
    dtype: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class AttentionLayers:
    """The logits and softmax of one attention.

    Attributes:
        logits: layer that multiplies queries and keys.
        softmax: layer that normalises those logits.
        scored: whether scores are computed from it, so that it has to be FP32.
        fusable: whether only reshapes, a mask and the product with the values use it, the form
            that TensorRT computes in one kernel.
    """

    logits: Layer
    softmax: Layer
    scored: bool
    fusable: bool


class LayerTable:
    """The layers of a parsed network, with queries on precision and attention.

    Args:
        layers: layers of the network, in order of execution.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.layers: tuple[Layer, ...] = tuple(layers)
        self._made_by = {name: layer for layer in self.layers for name in layer.outputs}
        self._read_by: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for name in layer.inputs:
                self._read_by.setdefault(name, []).append(layer)

    @classmethod
    def of(cls, network: Network) -> LayerTable:
        """Read the layers of a parsed network."""
        definition = network.definition
        return cls(_read(definition.get_layer(i)) for i in range(definition.num_layers))

    def count(self) -> Counter[tuple[str, str]]:
        """Number of layers per type and precision."""
        return Counter((layer.kind, layer.dtype) for layer in self.layers)

    def half_share(self, aside: int = 0) -> float:
        """Share of FP16 among `products`, from 0 to 1; 1 if there are none.

        Args:
            aside: number of attentions besides the scored ones whose logits may be FP32; if that
                many are at most, they do not count.
        """
        wide = [it.logits for it in self.attentions() if it.logits.dtype == "FLOAT"]
        uncounted = wide if len(wide) <= aside else []
        products = [layer.dtype for layer in self.products() if layer not in uncounted]
        return products.count("HALF") / len(products) if products else 1.0

    def products(self) -> list[Layer]:
        """Matrix products and convolutions, except for scored attention logits."""
        scoring = {layer.outputs[0] for layer in self.scoring()}
        return [
            layer
            for layer in self.layers
            if layer.kind in _PRODUCTS and layer.outputs[0] not in scoring
        ]

    def scoring(self) -> list[Layer]:
        """Layers from the attention logits to the scores, logits included.

        The search runs backwards from the scores and ends at the first matrix product on each
        path.
        """
        waiting = [name for name in _SCORES if name in self._made_by]
        found: dict[str, Layer] = {}
        while waiting:
            layer = self._made_by.get(waiting.pop())
            if layer is None or layer.outputs[0] in found:
                continue
            found[layer.outputs[0]] = layer
            if layer.kind != "MATRIX_MULTIPLY":
                waiting += layer.inputs
        return list(found.values())

    def attentions(self) -> list[AttentionLayers]:
        """All attentions, in order of execution."""
        scoring = {layer.outputs[0] for layer in self.scoring()}
        found = []
        for layer in self.layers:
            if layer.kind != "SOFTMAX" or (logits := self._logits(layer)) is None:
                continue
            scored = layer.outputs[0] in scoring
            found.append(AttentionLayers(logits, layer, scored, self._leads_to_values(layer)))
        return found

    def place(self, layer: Layer) -> str:
        """Name of a layer; outside of all modules also the nearest module before it."""
        before: Layer | None = layer
        while before is not None and "/" not in before.name:
            before = next((self._made_by[it] for it in before.inputs if it in self._made_by), None)
        if before in (layer, None):
            return layer.name
        return f"{layer.name} after {before.name.rpartition('/')[0]}"

    def _logits(self, softmax: Layer) -> Layer | None:
        """The product that a softmax normalises, found through casts, reshapes and a mask."""
        waiting = [softmax.inputs[0]]
        while waiting:
            layer = self._made_by.get(waiting.pop())
            if layer is None:
                continue
            if layer.kind == "MATRIX_MULTIPLY":
                return layer
            if layer.kind in (*_SHAPES, "ELEMENTWISE", "SELECT") and layer.dtype in _FLOATS:
                waiting += layer.inputs
        return None

    def _leads_to_values(self, softmax: Layer) -> bool:
        """Whether all outputs of a softmax are used only in products with the values."""
        waiting, seen = [*softmax.outputs], 0
        while waiting:
            for reader in self._read_by.get(waiting.pop(), []):
                if reader.kind == "MATRIX_MULTIPLY":
                    seen += 1
                elif reader.kind in _SHAPES and reader.dtype in _FLOATS:
                    waiting += reader.outputs
                elif reader.kind != "SHAPE":  # a SHAPE layer reads the size, not the values
                    return False
        return seen > 0


def check_precision(
    table: LayerTable, manifest: Manifest, graph: str, part: Part | None = None
) -> None:
    """Refuse a network whose scores are not FP32, or an FP16 one that is not mostly FP16.

    Args:
        table: layers of one of the bundle's graphs.
        manifest: manifest of the bundle, for its precision and scored layers.
        graph: name of the graph, such as "pair_scorer".
        part: part of the matrix scorer; None for a whole graph.

    Raises:
        LayerPrecisionError: layers have the wrong precision; the message names them.
    """
    if graph == "pair_scorer" or part == "match":
        _check_scores(table, manifest)
    # A walk computes the scored layers' attention to the unconditional text in FP32, too.
    share = table.half_share(len(manifest.method.score_layers) if part == "walk" else 0)
    # A VAE that overflows in FP16 stays FP32 as a whole (Stable Diffusion XL's).
    whole = graph == "image_encoder" and share == 0
    if manifest.precision == "fp16" and share < MIN_HALF and not whole:
        wide = [layer.name for layer in table.products() if layer.dtype != "HALF"]
        raise LayerPrecisionError(
            f"only {share:.1%} of the {title_of(graph, part)}'s matrix products and convolutions "
            f"are FP16, {MIN_HALF:.0%} are needed. These are not: {_some(wide)}. Export the bundle "
            "again"
        )


def _check_scores(table: LayerTable, manifest: Manifest) -> None:
    scoring = table.scoring()
    narrow = [it for it in scoring if it.dtype in _FLOATS and it.dtype != "FLOAT"]
    if narrow:
        raise LayerPrecisionError(
            f"attention logits, softmax and pooling have to be FP32, but "
            f"{_some([f'{it.name} is {it.dtype}' for it in narrow])}. Export the bundle again"
        )
    logits = [it for it in scoring if it.kind == "MATRIX_MULTIPLY"]
    wanted = len(manifest.method.score_layers)
    if len(logits) < wanted:
        raise LayerPrecisionError(
            f"scores need the attention logits of {counted(wanted, 'layer')}, and the network has "
            f"those of {len(logits)}. Export the bundle again"
        )


def _read(layer: Any) -> Layer:
    inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
    outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
    return Layer(
        layer.name,
        layer.type.name,
        outputs[0].dtype.name,
        tuple(tensor.name for tensor in inputs if tensor is not None),
        tuple(tensor.name for tensor in outputs),
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
