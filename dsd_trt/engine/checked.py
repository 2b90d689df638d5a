"""Opening an engine of any backend, the user's own included, held to its interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from dsd_trt.batching import BatchSizes
from dsd_trt.bundle.contract import Graph
from dsd_trt.bundle.folder import Bundle
from dsd_trt.engine import Backend, Engine, EngineDescription
from dsd_trt.engine.shared import SharedEngine, check_feeds, check_outputs
from dsd_trt.errors import DsdError, EngineError, one_line


def checked_batch_sizes(
    backend: Backend, bundle: Bundle, memory_budget_mb: float | None
) -> BatchSizes:
    """Batch sizes of a backend; arguments as for `Backend.batch_sizes`.

    Raises:
        InputError: the budget is not a number, or negative.
        EngineError: the backend gives something else, or a size below 1.
    """
    sizes = backend.batch_sizes(bundle, memory_budget_mb)
    if not isinstance(sizes, BatchSizes):
        raise EngineError(f"{backend.name}: batch_sizes gave {sizes!r}, expected are BatchSizes")
    matrix = sizes.matrix if isinstance(sizes.matrix, tuple) else (sizes.matrix,)
    numbers = (sizes.images, sizes.texts, sizes.passes, *matrix)
    if len(numbers) != 5 or not all(isinstance(it, int) and it > 0 for it in numbers):
        raise EngineError(f"{backend.name}: batch sizes must be whole numbers above 0, not {sizes}")
    return sizes


def open_engine(backend: Backend, bundle: Bundle, name: str) -> Engine:
    """Compile one graph, as `Backend.open` does.

    Args:
        backend: backend that compiles the graph.
        bundle: the verified bundle that holds the graph.
        name: name of the graph, such as "pair_scorer".

    Raises:
        EngineError: the backend fails, or what it opens is no engine.
    """
    graph = bundle.manifest.graphs[name]
    try:
        engine = backend.open(bundle, name)
    except DsdError:
        raise
    except Exception as error:
        raise _failed(backend.name, f"opening {graph.file}", error) from error
    lacking = [it for it in ("run", "close") if not callable(getattr(engine, it, None))]
    if not isinstance(getattr(engine, "description", None), EngineDescription):
        lacking.insert(0, "description")
    if lacking:
        raise EngineError(
            f"{backend.name}: open gave {type(engine).__name__} for {graph.file}, which is no "
            f"Engine: its {lacking[0]} is missing or of another type"
        )
    if backend.checks_itself or isinstance(engine, SharedEngine):
        return engine
    return CheckedEngine(engine, graph, backend)


class CheckedEngine:
    """An engine that does not derive from `SharedEngine`, with the same checks; see `Engine`.

    Args:
        engine: the engine as its backend opened it.
        graph: declared inputs and outputs of its graph.
        backend: backend that opened it, for messages.
    """

    def __init__(self, engine: Engine, graph: Graph, backend: Backend) -> None:
        self._engine, self._graph, self._name = engine, graph, backend.name
        self.gathers: bool = getattr(engine, "gathers", False)

    @property
    def description(self) -> EngineDescription:
        """See `Engine.description`."""
        return self._engine.description

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `Engine.run`."""
        check_feeds(self._graph, feeds)
        try:
            outputs = self._engine.run(feeds)
        except DsdError:
            raise
        except Exception as error:
            raise _failed(self._name, f"running {self._graph.file}", error) from error
        check_outputs(self._graph, feeds, outputs)
        return outputs

    def close(self) -> None:
        """Release memory and threads; see `Engine.close`."""
        self._engine.close()


def _failed(name: str, doing: str, error: Exception) -> EngineError:
    return EngineError(f"{name}: {doing} failed with {type(error).__name__}: {one_line(error)}")
