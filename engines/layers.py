"""What TensorRT's parser made of a graph: types, the scores' precision, and attention's form.

Precision is read back here rather than asked for. A strongly typed network computes in the types
its graph has, so that what is read from the parsed network is what the plan does; but for the
inside of a normalisation layer, which the library chooses and does not tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dsd_trt.bundle.manifest import Manifest
from dsd_trt.engines.network import Network
from dsd_trt.errors import LayerPrecisionError

MIN_HALF = 0.95
"""Of an FP16 graph's matrix products and convolutions, at least so many are FP16.

The scored attention logits are left out: they have to be FP32, and are one product in fifteen of
Stable Diffusion XL's.
"""

_SCORES = ("score", "token_scores")
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")
_FLOATS = ("FLOAT", "HALF", "BF16")
_SHAPES = ("SHUFFLE", "CAST", "IDENTITY", "SQUEEZE", "UNSQUEEZE")  # values stay what they are


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        name: after the ONNX node it comes from.
        kind: its type, such as "MATRIX_MULTIPLY".
        dtype: of its first output, such as "HALF".
        inputs: names of the tensors it reads.
        outputs: names of the tensors it makes.
    """

    name: str
    kind: str
    dtype: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class AttentionLayers:
    """One softmax and the products around it.

    Attributes:
        logits: the product of queries and keys.
        softmax: its softmax.
        scored: whether scores are made of it, so that it has to be FP32.
        fusable: whether nothing but reshapes, a mask and the product with the values touches it:
            the form that TensorRT computes in one kernel.
    """

    logits: Layer
    softmax: Layer
    scored: bool
    fusable: bool


class LayerTable:
    """A parsed network's layers, and the questions that are asked of them."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.layers = tuple(layers)
        self._made_by = {name: layer for layer in self.layers for name in layer.outputs}
        self._read_by: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for name in layer.inputs:
                self._read_by.setdefault(name, []).append(layer)

    @classmethod
    def of(cls, network: Network) -> LayerTable:
        """Read it from a parsed network."""
        definition = network.definition
        return cls(_read(definition.get_layer(i)) for i in range(definition.num_layers))

    def count(self) -> Counter[tuple[str, str]]:
        """How many layers there are of each type and precision."""
        return Counter((layer.kind, layer.dtype) for layer in self.layers)

    def half_share(self) -> float:
        """Share of FP16 among matrix products and convolutions, scored logits aside."""
        products = [layer.dtype for layer in self.products()]
        return products.count("HALF") / len(products) if products else 1.0

    def products(self) -> list[Layer]:
        """Matrix products and convolutions, but for the attention logits that are scored."""
        scoring = {layer.outputs[0] for layer in self.scoring()}
        return [
            layer
            for layer in self.layers
            if layer.kind in _PRODUCTS and layer.outputs[0] not in scoring
        ]

    def scoring(self) -> list[Layer]:
        """What lies between the attention logits and the scores, logits included.

        Walked backwards from the scores, up to the first matrix product on every way.
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
        """Every attention, in order."""
        scoring = {layer.outputs[0] for layer in self.scoring()}
        found = []
        for layer in self.layers:
            if layer.kind != "SOFTMAX" or (logits := self._logits(layer)) is None:
                continue
            scored = layer.outputs[0] in scoring
            found.append(AttentionLayers(logits, layer, scored, self._leads_to_values(layer)))
        return found

    def place(self, layer: Layer) -> str:
        """A layer's name, and the module it lies in or comes after."""
        before: Layer | None = layer
        while before is not None and "/" not in before.name:
            before = next((self._made_by[it] for it in before.inputs if it in self._made_by), None)
        if before in (layer, None):
            return layer.name
        return f"{layer.name} after {before.name.rpartition('/')[0]}"

    def _logits(self, softmax: Layer) -> Layer | None:
        """The product a softmax is taken of, through casts, reshapes and a mask."""
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
        """Whether everything a softmax makes ends in products with values."""
        waiting, seen = [*softmax.outputs], 0
        while waiting:
            for reader in self._read_by.get(waiting.pop(), []):
                if reader.kind == "MATRIX_MULTIPLY":
                    seen += 1
                elif reader.kind in _SHAPES and reader.dtype in _FLOATS:
                    waiting += reader.outputs
                elif reader.kind != "SHAPE":  # who asks for a size reads no values
                    return False
        return seen > 0


def check_precision(table: LayerTable, manifest: Manifest, graph: str) -> None:
    """Refuse a network whose scores are not FP32, or whose bulk is not FP16 where it should be.

    Args:
        table: of one of a bundle's graphs.
        manifest: of the bundle.
        graph: which.

    Raises:
        LayerPrecisionError: names the layers.
    """
    if graph == "pair_scorer":
        _check_scores(table, manifest)
    share = table.half_share()
    # A VAE that overflows in FP16 stays FP32 as a whole (Stable Diffusion XL's).
    whole = graph == "image_encoder" and share == 0
    if manifest.precision == "fp16" and share < MIN_HALF and not whole:
        wide = [layer.name for layer in table.products() if layer.dtype != "HALF"]
        raise LayerPrecisionError(
            f"only {share:.1%} of the {graph}'s matrix products and convolutions are FP16, "
            f"{MIN_HALF:.0%} are needed; not so are {_some(wide)}. Export the bundle again"
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
            f"scores are made of {wanted} layers' attention logits, but only {len(logits)} are "
            "found in the network. Export the bundle again"
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
