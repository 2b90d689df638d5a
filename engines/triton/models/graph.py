"""`dsd_image_encoder`, `dsd_text_encoder` or a scorer on the lean runtime's engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Before an installed dsd_trt, which may be another version.
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import triton_python_backend_utils as pb_utils

from dsd_trt.bundle import Bundle
from dsd_trt.engine import open_engine
from dsd_trt.manifest import MANIFEST_NAME, Manifest
from dsd_trt.pipeline import adapter_feed

HERE = Path(__file__).parent


class TritonPythonModel:
    """What the python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Compile the graph."""
        parameters = json.loads(args["model_config"])["parameters"]
        name, engine = (parameters[key]["string_value"] for key in ("graph", "engine"))
        bundle = Bundle(HERE, Manifest.from_json((HERE / MANIFEST_NAME).read_text("utf-8")))
        self._graph = bundle.manifest.graphs[name]
        self._engine = open_engine(bundle.path(self._graph.file), self._graph, engine)
        pb_utils.Logger.log_info(f"{name}: {self._engine.description}")
        takes_adapter = any(not spec.batched for spec in self._graph.inputs)
        self._adapter = adapter_feed(bundle) if takes_adapter else {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch, or each by itself where the graph cannot join them."""
        if self._graph.batched:
            return self._run(requests)
        return [response for request in requests for response in self._run([request])]

    def _run(self, requests: list[Any]) -> list[Any]:
        inputs = {
            spec.name: [
                pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy()
                for request in requests
            ]
            for spec in self._graph.inputs
            if spec.batched
        }
        sizes = [len(values) for values in next(iter(inputs.values()))]
        feeds = {name: np.concatenate(values) for name, values in inputs.items()}
        outputs = self._engine.run({**feeds, **self._adapter})
        parts = {name: np.split(values, np.cumsum(sizes)[:-1]) for name, values in outputs.items()}
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, parts[name][i]) for name in request.requested_output_names()]
            )
            for i, request in enumerate(requests)
        ]
