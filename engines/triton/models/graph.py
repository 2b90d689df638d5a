"""`dsd_image_encoder`, `dsd_text_encoder` or a scorer on one of the lean runtime's engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Before an installed dsd_trt, which may be another version.
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from dsd_trt.bundle.adapter_input import adapter_feed
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import MANIFEST_NAME, Manifest
from dsd_trt.engine import Engine
from dsd_trt.engine.choice import Choice, open_first
from dsd_trt.engine.self_check import SelfCheck
from dsd_trt.pipeline import finite_rows

HERE = Path(__file__).parent

Array = NDArray[Any]


class TritonPythonModel:
    """The interface that Triton's python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Compile the graph, and refuse it if it fails the bundle's self-check."""
        parameters = json.loads(args["model_config"])["parameters"]
        name, engine = (parameters[key]["string_value"] for key in ("graph", "engine"))
        bundle = Bundle(HERE, Manifest.from_json((HERE / MANIFEST_NAME).read_text("utf-8")))
        self._name = args["model_name"]
        self._graph = bundle.manifest.graphs[name]
        check = SelfCheck.read(bundle) if int(parameters["self_check"]["string_value"]) else None

        def attempt(choice: Choice) -> tuple[Engine, str]:
            return choice.backend.open(bundle, name), choice.reason

        self._engine, reason = open_first(engine, 0, bundle, (name,), attempt)
        pb_utils.Logger.log_info(f"{name}: {self._engine.description}")
        if reason:
            pb_utils.Logger.log_info(f"{name}: passed over: {reason}")
        takes_adapter = any(not spec.batched for spec in self._graph.inputs)
        self._adapter = adapter_feed(bundle) if takes_adapter else {}
        if check is not None:
            check.require(name, self._graph, self._engine, self._adapter)

    def finalize(self) -> None:
        """Free the engine's memory and threads, before the model is loaded again."""
        self._engine.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch, or one by one if the graph has no batch dimension."""
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
            self._answer(
                request,
                {name: values[i] for name, values in inputs.items()},
                {name: values[i] for name, values in parts.items()},
            )
            for i, request in enumerate(requests)
        ]

    def _answer(self, request: Any, inputs: dict[str, Array], outputs: dict[str, Array]) -> Any:
        """Answer one request; the answer is an error if an input or output is not finite.

        JSON has no NaN, and engines handle NaN differently: OpenVINO's softmax returns infinity.
        `dsd_score` and `dsd_rank_texts` send many rows at once and check them.
        """
        warm_up = not any(values.any() for values in inputs.values())  # its token mask is all 0
        if not warm_up and not json.loads(request.parameters()).get("keep_not_finite"):
            for name, values in {**inputs, **outputs}.items():
                if bad := np.flatnonzero(~finite_rows(values)).tolist():
                    message = f"{self._name}: {name} has NaN or infinity in rows {bad}"
                    return pb_utils.InferenceResponse(
                        error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
                    )
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, outputs[name]) for name in request.requested_output_names()]
        )
