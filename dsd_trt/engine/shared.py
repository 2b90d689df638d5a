"""Common behaviour of engines: shared by threads, with feeds checked before a run."""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph
from dsd_trt.engine import EngineDescription
from dsd_trt.engine.rows import Rows
from dsd_trt.errors import DsdError, EngineError, one_line

CLOSED = "the scorer is closed; open another one: Scorer.load(...)"

_FORKED = (
    "this process was forked from the one that opened the engine, whose threads it lacks. Start "
    "processes with spawn, and open a Scorer in each: multiprocessing.get_context('spawn')"
)

_WITHIN = (
    "this thread is in the middle of a run, which a signal handler or the like has interrupted. "
    "Let it set a flag, and score when it has returned"
)

_alive: weakref.WeakSet[SharedEngine] = weakref.WeakSet()


class SharedEngine(ABC):
    """One compiled graph that any thread may run; see `Engine`.

    Runs take turns: each one keeps all cores busy, and activations exist once.

    Args:
        graph: declared inputs and outputs, which feeds are checked against before a run, and
            results after it.
    """

    description: EngineDescription
    gathers = False  # whether feeds may be `Rows`

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._process = os.getpid()
        # Reentrant: a signal handler in the running thread gets an error instead of a deadlock.
        self._turn = threading.RLock()
        self._running = self._closed = False
        _alive.add(self)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `Engine.run`."""
        require_process(self._process)
        check_feeds(self._graph, feeds)
        with self._turn:
            if self._running:
                raise EngineError(_WITHIN)
            if self._closed:
                raise EngineError(CLOSED)
            try:
                self._running = True
                outputs = self._run(feeds)
                check_outputs(self._graph, feeds, outputs)
                return outputs
            except DsdError:
                raise
            except Exception as error:
                what = f"{type(error).__name__}: {one_line(error)}"
                raise EngineError(f"running {self._graph.file} failed with {what}") from error
            finally:
                self._running = False
                if self._closed:  # called during the run
                    self._release()

    def close(self) -> None:
        """Release memory and threads, after the run in progress; see `Engine.close`."""
        if self._process != os.getpid():
            return  # everything belongs to the parent process, perhaps even the lock
        with self._turn:
            if not self._closed:
                self._closed = True
                if not self._running:
                    self._release()

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph on checked feeds; nothing may continue in the background after an error."""

    @abstractmethod
    def _release(self) -> None:
        """Drop all objects that hold memory or threads; called once."""


def require_process(opener: int) -> None:
    """Refuse to work in a forked child of the process that opened something: it would hang.

    Args:
        opener: process id of the process that opened it.

    Raises:
        EngineError: this process is a forked child.
    """
    if os.getpid() != opener:
        raise EngineError(_FORKED)


def _abandon() -> None:
    """Leave the parent's objects alone in a forked child: freeing them would wait for threads."""
    if engines := list(_alive):
        import ctypes

        for engine in engines:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)


def check_feeds(graph: Graph, feeds: Mapping[str, NDArray[Any]]) -> None:
    """Compare the feeds of a graph with its declaration.

    Raises:
        EngineError: a name, a type or a shape differs, or a batch is empty.
    """
    declared = {spec.name for spec in graph.inputs}
    if feeds.keys() != declared:
        raise EngineError(f"{graph.file} takes {sorted(declared)}, and was fed {sorted(feeds)}")
    sizes: dict[str, tuple[int, str]] = {}  # size of each dynamic dimension, and its input
    for spec in graph.inputs:
        values = feeds[spec.name]
        if not isinstance(values, (np.ndarray, Rows)) or values.dtype != spec.dtype:
            raise EngineError(f"{graph.file} takes {spec}, and was fed {_described(values)}")
        if len(values.shape) != len(spec.shape):
            raise EngineError(f"{graph.file} takes {spec}, and was fed {_described(values)}")
        for size, wanted in zip(values.shape, spec.shape, strict=True):
            if isinstance(wanted, str):
                known, name = sizes.setdefault(wanted, (size, spec.name))
                if size != known or not size:
                    raise EngineError(
                        f"{graph.file} takes at least one {wanted}, as many of every input; it was "
                        f"fed {known} of {name} and {size} of {spec.name}"
                    )
            elif size != wanted:
                raise EngineError(f"{graph.file} takes {spec}, and was fed {_described(values)}")


def check_outputs(
    graph: Graph, feeds: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
) -> None:
    """Compare the results of a graph with its declaration and the batch it was fed.

    Args:
        graph: declared inputs and outputs.
        feeds: what the graph was fed, as `check_feeds` let it pass.
        outputs: what an engine gave.

    Raises:
        EngineError: a name, a type or a shape differs.
    """
    declared = {spec.name for spec in graph.outputs}
    if not isinstance(outputs, Mapping) or outputs.keys() != declared:
        found = sorted(map(str, outputs)) if isinstance(outputs, Mapping) else _described(outputs)
        raise EngineError(f"{graph.file} gives {sorted(declared)}, and the engine gave {found}")
    sizes: dict[str, int] = {}
    for spec in graph.inputs:
        for size, wanted in zip(feeds[spec.name].shape, spec.shape, strict=True):
            if isinstance(wanted, str):
                sizes[wanted] = size
    for spec in graph.outputs:
        values = outputs[spec.name]
        # None is any size: a dimension of outputs alone.
        shape = [sizes.get(size) if isinstance(size, str) else size for size in spec.shape]
        if graph.batched and spec.batched:  # whatever an output calls the batch
            shape[0] = next(iter(sizes.values()), None)
        if not _has(values, spec.dtype, shape):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise EngineError(
                f"{graph.file} gives {spec.name} as {spec.dtype} ({wanted}), and the engine gave "
                f"{_described(values)}"
            )


def _has(values: object, dtype: str, shape: Sequence[int | None]) -> bool:
    """Whether something is an array of a type and a shape, None being any size."""
    if not isinstance(values, np.ndarray) or values.dtype != dtype:
        return False
    return len(values.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(values.shape, shape, strict=True)
    )


def _described(values: object) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} {values.shape}"
    return type(values).__name__
