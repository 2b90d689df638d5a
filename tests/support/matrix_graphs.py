"""Matrix scorers as OpenVINO models."""

from __future__ import annotations

import openvino as ov

from dsd_trt import Bundle


def of_fixed_sizes(bundle: Bundle) -> ov.Model:
    """The matrix scorer for 3 walks, 5 texts and 16 counted tokens."""
    graph = bundle.manifest.graphs["matrix_scorer"]
    model = ov.Core().read_model(bundle.path(graph.file))
    sizes = {"I": 3, "T": 5, "L": 16}
    shapes = ([sizes.get(str(size), size) for size in spec.shape] for spec in graph.inputs)
    model.reshape(dict(enumerate(shapes)))
    return model
