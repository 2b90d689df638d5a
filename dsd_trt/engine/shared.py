"""What every engine keeps to: threads may share it, and what it is fed is checked first."""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.contract import Graph
from dsd_trt.engine import EngineDescription
from dsd_trt.errors import EngineError

CLOSED = "the scorer is closed; open another one: Scorer.load(...)"

_FORKED = (
    "this process was forked from the one that opened the engine, whose threads it lacks. Start "
    "processes with spawn, and open a Scorer in each: multiprocessing.get_context('spawn')"
)

_WITHIN = (
    "this thread is in the middle of a pass, which a signal handler or the like has interrupted. "
    "Let it set a flag, and score when it has returned"
)

_alive: weakref.WeakSet[SharedEngine] = weakref.WeakSet()


class SharedEngine(ABC):
    """One compiled graph that any thread may run; see `Engine`.

    Passes take turns: a single one keeps all cores busy, and activations are held once.

    Args:
        graph: its signature, which every feed is held against before anything is queued.
    """

    description: EngineDescription

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._process = os.getpid()
        # Reentrant, so that whatever interrupts the thread that has the turn is told, and not held.
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
                return self._run(feeds)
            finally:
                self._running = False
                if self._closed:  # from within the pass
                    self._release()

    def close(self) -> None:
        """Give back memory and threads, after the pass that is under way; see `Engine.close`."""
        if self._process != os.getpid():
            return  # all of it is another process's, and so may be the turn
        with self._turn:
            if not self._closed:
                self._closed = True
                if not self._running:
                    self._release()

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph on feeds that are as declared; nothing of it goes on after an error."""

    @abstractmethod
    def _release(self) -> None:
        """Drop all that holds memory or threads; called once."""


def require_process(opener: int) -> None:
    """Refuse to work in a child that was forked after something was opened, where it would hang.

    Args:
        opener: the process that opened it.

    Raises:
        EngineError: this is another one.
    """
    if os.getpid() != opener:
        raise EngineError(_FORKED)


def _abandon() -> None:
    """Leave a child what its parent opened: to free it would wait for threads that it lacks."""
    if engines := list(_alive):
        import ctypes

        for engine in engines:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)


def check_feeds(graph: Graph, feeds: Mapping[str, NDArray[Any]]) -> None:
    """Compare what a graph is fed with what it declares.

    Raises:
        EngineError: a name, a type or a shape differs, or there is nothing to run.
    """
    declared = {spec.name for spec in graph.inputs}
    if feeds.keys() != declared:
        raise EngineError(f"{graph.file} takes {sorted(declared)}, and was fed {sorted(feeds)}")
    sizes: dict[str, tuple[int, str]] = {}  # by dynamic dimension: its size, and who has it
    for spec in graph.inputs:
        values = feeds[spec.name]
        if not isinstance(values, np.ndarray) or values.dtype != spec.dtype:
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


def _described(values: object) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} {values.shape}"
    return type(values).__name__
