"""How much arithmetic a network does, counted from the network itself."""

from __future__ import annotations

import math
from typing import Any

from dsd_trt.bundle.contract import Graph
from dsd_trt.engines.network import Network


def count_macs(network: Network, graph: Graph) -> int:
    """Multiplications with addition of one row's matrix products and convolutions.

    Args:
        network: freshly parsed; its inputs are given the size of one row, and keep it.
        graph: its signature.
    """
    definition = network.definition
    sizes = {spec.name: spec.of_batch(1) for spec in graph.inputs}
    for i in range(definition.num_inputs):
        tensor = definition.get_input(i)
        tensor.shape = sizes[tensor.name]
    layers = (definition.get_layer(i) for i in range(definition.num_layers))
    return sum(_macs(network.trt, layer) for layer in layers)


def _macs(trt: Any, layer: Any) -> int:
    """Of one layer: for every number it makes, how many products are summed."""
    if layer.type not in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION):
        return 0
    made = math.prod(layer.get_output(0).shape)
    if layer.type == trt.LayerType.CONVOLUTION:
        # Its own class has kernel and groups; the weights' size is their product with both
        # numbers of channels, whatever it is given them as.
        channels = int(layer.get_output(0).shape[1])
        return made * _weights(trt, layer) // channels
    product = layer
    product.__class__ = trt.IMatrixMultiplyLayer  # the bindings' way of a downcast
    rows, columns = tuple(product.get_input(0).shape)[-2:]
    return made * int(rows if product.op0 == trt.MatrixOperation.TRANSPOSE else columns)


def _weights(trt: Any, layer: Any) -> int:
    """Size of a convolution's kernel: an input of its own, or held by the layer."""
    if layer.num_inputs > 1 and (kernel := layer.get_input(1)) is not None:
        return math.prod(kernel.shape)
    convolution = layer
    convolution.__class__ = trt.IConvolutionLayer
    return int(convolution.kernel.size)
