"""Multiply-accumulates (MACs) of a TensorRT network, counted from the network itself."""

from __future__ import annotations

import math
from typing import Any

from dsd_trt.bundle.contract import Graph
from dsd_trt.engines.network import Network


def count_macs(network: Network, graph: Graph) -> int:
    """Count the MACs of matrix products and convolutions for a batch of one row.

    Args:
        network: freshly parsed network, whose inputs are set to one row and stay so.
        graph: signature of the graph in the bundle's contract.
    """
    definition = network.definition
    sizes = {spec.name: spec.of_batch(1) for spec in graph.inputs}
    for i in range(definition.num_inputs):
        tensor = definition.get_input(i)
        tensor.shape = sizes[tensor.name]
    layers = (definition.get_layer(i) for i in range(definition.num_layers))
    return sum(_macs(network.trt, layer) for layer in layers)


def _macs(trt: Any, layer: Any) -> int:
    """MACs of one layer: the size of its output times the number of products per element."""
    if layer.type not in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION):
        return 0
    made = math.prod(layer.get_output(0).shape)
    if layer.type == trt.LayerType.CONVOLUTION:
        # weights = C_out * C_in / groups * kernel height * kernel width, so weights / C_out is
        # the number of products per output element, whatever form the weights come in.
        channels = int(layer.get_output(0).shape[1])
        return made * _weights(trt, layer) // channels
    product = layer
    product.__class__ = trt.IMatrixMultiplyLayer  # the bindings' way of a downcast
    rows, columns = tuple(product.get_input(0).shape)[-2:]
    return made * int(rows if product.op0 == trt.MatrixOperation.TRANSPOSE else columns)


def _weights(trt: Any, layer: Any) -> int:
    """Number of weights of a convolution, whether they are an input or held by the layer."""
    if layer.num_inputs > 1 and (kernel := layer.get_input(1)) is not None:
        return math.prod(kernel.shape)
    convolution = layer
    convolution.__class__ = trt.IConvolutionLayer
    return int(convolution.kernel.size)
