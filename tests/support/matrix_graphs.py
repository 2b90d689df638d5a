"""Matrix scorers as OpenVINO reads them."""

from __future__ import annotations

import openvino as ov

from dsd_trt import Bundle


def of_fixed_sizes(bundle: Bundle) -> ov.Model:
    """Of 3 rows and 5 texts, of which 16 tokens may count."""
    graph = bundle.manifest.graphs["matrix_scorer"]
    model = ov.Core().read_model(bundle.path(graph.file))
    sizes = {"I": 3, "T": 5, "L": 16}
    shapes = ([sizes.get(str(size), size) for size in spec.shape] for spec in graph.inputs)
    model.reshape(dict(enumerate(shapes)))
    return model
