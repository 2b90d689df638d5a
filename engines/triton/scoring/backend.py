"""A repository's other models as a backend, for the pipeline of models that clients call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from dsd_trt.batching import BatchSizes
from dsd_trt.bundle.contract import Graph
from dsd_trt.bundle.folder import Bundle
from dsd_trt.engine import Backend, EngineDescription
from dsd_trt.errors import EngineError

Array = NDArray[Any]


@dataclass(frozen=True)
class Triton(Backend):
    """The repository's other models; see `Backend`.

    Attributes:
        sizes: items per request to each model.
    """

    sizes: BatchSizes = field(kw_only=True)
    reads_graphs: bool = False
    tunes_batch: bool = False
    checks_itself: bool = True  # the server does

    def batch_sizes(self, bundle: Bundle, memory_budget_mb: float | None) -> BatchSizes:
        """The batch sizes of the repository's configurations."""
        return self.sizes

    def open(self, bundle: Bundle, graph: str) -> TritonEngine:
        """Open the model that serves a graph; see `Backend.open`."""
        return TritonEngine(graph, bundle.manifest.graphs[graph])


class TritonEngine:
    """A graph that another model of the repository serves; see `dsd_trt.engine.Engine`.

    Args:
        name: name of the graph, such as "pair_scorer".
        graph: signature of the graph in the bundle's contract.
    """

    def __init__(self, name: str, graph: Graph) -> None:
        self._model, self._graph = f"dsd_{name}", graph
        # The answer has no scores per token, so they are not requested.
        self._outputs = [spec for spec in graph.outputs if spec.name != "token_scores"]
        self.description: EngineDescription = EngineDescription(
            "triton", self._model, "as its graph says"
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Send one request to the model; see `Engine.run`."""
        count, batched = len(next(iter(feeds.values()))), self._graph.batched
        inputs = [
            # Triton has no scalars per item: (B,) -> (B, 1)
            pb_utils.Tensor(name, values.reshape(-1, 1) if batched and values.ndim == 1 else values)
            for name, values in feeds.items()
        ]
        answer = pb_utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=[spec.name for spec in self._outputs],
            inputs=inputs,
            parameters={"keep_not_finite": True},  # rows are checked one by one; see `graph.py`
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        ).exec()
        if answer.has_error():
            raise EngineError(f"{self._model} failed: {answer.error().message()}")
        outputs = {
            spec.name: pb_utils.get_output_tensor_by_name(answer, spec.name).as_numpy()
            for spec in self._outputs
        }
        if not batched:
            return outputs
        return {
            spec.name: outputs[spec.name].reshape(spec.of_batch(count)) for spec in self._outputs
        }

    def close(self) -> None:
        """Do nothing: the other model owns the graph."""
