"""Gates computed apart: the same numbers from the same memory."""

from __future__ import annotations

import torch
from diffusers.models.attention import FeedForward

from dsd_trt.export.gates import TwoLinears, split_gates


def test_a_split_gate_computes_the_same() -> None:
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(FeedForward(8, activation_fn="geglu") for _ in range(2))
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        expected = [layer(x) for layer in layers]
        split_gates(layers)
        for layer, values in zip(layers, expected, strict=True):
            torch.testing.assert_close(layer(x), values)


def test_weights_are_not_copied() -> None:
    feed_forward = FeedForward(8, activation_fn="geglu")
    weight = feed_forward.net[0].proj.weight
    split_gates(feed_forward)
    gate = feed_forward.net[0]
    assert isinstance(gate, TwoLinears)
    assert gate.value.weight.data_ptr() == weight.data_ptr()
    assert gate.gate.weight.data_ptr() == weight[32:].data_ptr()
