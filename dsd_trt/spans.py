"""Spans of time: what each thread did and when, recorded while a block runs.

A span is recorded in the context (`contextvars`) that it begins in. Without a recording it costs a
look-up. `dsd_trt.trace` writes a recording to a file.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Category: TypeAlias = Literal[
    "open",
    "decode",
    "waiting for a picture",
    "image encoder",
    "text encoder",
    "U-Net pass",
    "write",
]
"""What time is spent on. To open is to compile a graph, and its self-check. To decode is also to
read, to hash and to resize."""

Details: TypeAlias = dict[str, str | int]

MOST_SPANS = 100_000
"""Spans that are kept, the first ones. Of later ones the seconds are summed."""


def span(category: Category, name: str = "", **details: str | int) -> AbstractContextManager[None]:
    """A block to record in the recording of this context, if there is one.

    Args:
        category: what the time is spent on.
        name: what exactly, such as "pair"; "" is the category.
        details: further details by name, such as `images=32`.
    """
    if (recording := _current.get()) is None:
        return _UNRECORDED
    return recording.span(category, name or category, details)


@contextlib.contextmanager
def recorded() -> Iterator[Recording]:
    """Record the spans of the block, and of threads that run in its context."""
    recording = Recording()
    token = _current.set(recording)
    try:
        yield recording
    finally:
        _current.reset(token)


class Span(NamedTuple):
    """Something that a thread did.

    Attributes:
        category: what the time is spent on.
        name: name of the work within its category, such as "pair".
        details: further details by name.
        lane: number of the lane it is in.
        begin: nanoseconds from the recording's begin to its own.
        end: nanoseconds from the recording's begin to its end.
    """

    category: Category
    name: str
    details: Details
    lane: int
    begin: int
    end: int


@dataclass
class Lane:
    """The spans of one thread after another.

    Attributes:
        thread: thread whose spans are recorded in it. When it has ended, a thread of the same name
            takes its place: pools come and go.
        depth: number of spans that the thread is in.
    """

    thread: threading.Thread
    depth: int = 0


class Recording:
    """Spans of all threads that share it.

    Args:
        most: number of spans to keep, the first ones.
        clock: function that returns nanoseconds.

    Attributes:
        began: time of day when it began, in seconds since 1970.
        left_out: number of spans that are not kept.
    """

    def __init__(
        self, most: int = MOST_SPANS, clock: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self.began: float = time.time()
        self.left_out: int = 0
        self._most, self._clock, self._first = most, clock, clock()
        self._spans: list[Span] = []
        self._lanes: list[Lane] = []
        self._totals: Counter[Category] = Counter()  # nanoseconds
        self._lock = threading.RLock()  # a signal handler may interrupt

    @property
    def spans(self) -> list[Span]:
        """Spans that have ended, in order of their begin; one comes before those within it."""
        with self._lock:
            return sorted(self._spans, key=lambda it: (it.begin, -it.end))

    @property
    def lanes(self) -> Sequence[Lane]:
        """Lanes by their number."""
        return tuple(self._lanes)

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return (self._clock() - self._first) / 1e9

    @property
    def totals(self) -> dict[Category, float]:
        """Seconds of all threads together by category, of spans that are in no other span."""
        with self._lock:
            return {category: it / 1e9 for category, it in self._totals.items()}

    @contextlib.contextmanager
    def span(self, category: Category, name: str, details: Details) -> Iterator[None]:
        """A block to record; arguments as for `dsd_trt.spans.span`."""
        number, lane = self._lane()
        lane.depth += 1
        begin = self._clock()
        try:
            yield
        finally:
            end = self._clock()
            lane.depth -= 1
            with self._lock:
                if not lane.depth:
                    self._totals[category] += end - begin
                if len(self._spans) < self._most:
                    times = begin - self._first, end - self._first
                    self._spans.append(Span(category, name, details, number, *times))
                else:
                    self.left_out += 1

    def _lane(self) -> tuple[int, Lane]:
        """Number and lane of this thread."""
        thread = threading.current_thread()
        with self._lock:
            for number, lane in enumerate(self._lanes):
                if lane.thread is thread:
                    return number, lane
            for number, lane in enumerate(self._lanes):
                if lane.thread.name == thread.name and not lane.thread.is_alive():
                    lane.thread = thread
                    return number, lane
            self._lanes.append(Lane(thread))
            return len(self._lanes) - 1, self._lanes[-1]


_current: contextvars.ContextVar[Recording | None] = contextvars.ContextVar(
    "recording", default=None
)
_UNRECORDED = contextlib.nullcontext()
