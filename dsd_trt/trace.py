"""A trace of what each thread did and when, in Chrome's trace-event format.

    with traced("trace.json"):
        scorer.score(images, texts)

chrome://tracing and https://ui.perfetto.dev open the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsd_trt.errors import DsdError, cut
from dsd_trt.files.whole import write_whole
from dsd_trt.log import get_logger
from dsd_trt.spans import Recording, Span, recorded

logger = get_logger(__name__)

_LONGEST = 200  # characters of a detail


@contextlib.contextmanager
def traced(path: str | os.PathLike[str]) -> Iterator[Recording]:
    """Trace the block, and write the trace when it ends, also by an error.

    Args:
        path: JSON file to write, whole: the first 100,000 spans, some 20 MB.

    Raises:
        DsdError: the file cannot be written. After an error of the block that is a logged warning.
    """
    file = Path(path)
    try:
        with recorded() as recording:
            yield recording
    except BaseException:
        try:
            write_whole(file, to_json(recording))
        except DsdError as error:
            logger.warning("there is no trace: %s", error)
        raise
    write_whole(file, to_json(recording))


def to_json(recording: Recording) -> str:
    """A recording in Chrome's JSON object format.

    Times are whole microseconds, rounded down, so that spans stay within those around them.
    """
    process = os.getpid()
    events: list[dict[str, Any]] = [_name("process_name", "dsd-trt", pid=process)]
    for number, lane in enumerate(recording.lanes, start=1):
        name = "main" if lane.thread is threading.main_thread() else lane.thread.name
        events.append(_name("thread_name", name, pid=process, tid=number))
    events += (_complete(it, process) for it in recording.spans)
    about = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(recording.began)),
        "seconds": round(recording.seconds, 6),
        "seconds by category": {name: round(it, 6) for name, it in recording.totals.items()},
        "spans left out": recording.left_out,
    }
    lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
    rest = json.dumps({"displayTimeUnit": "ms", "otherData": about})
    return f'{{"traceEvents": [\n{lines}\n], {rest[1:]}\n'


def _name(kind: str, name: str, **of: int) -> dict[str, Any]:
    """A metadata event: the name of a process or a thread."""
    return {"ph": "M", "name": kind, **of, "args": {"name": name}}


def _complete(span: Span, process: int) -> dict[str, Any]:
    """A complete event: a span."""
    begin, end = span.begin // 1000, span.end // 1000
    event = {"ph": "X", "name": span.name, "cat": span.category, "ts": begin, "dur": end - begin}
    details = {
        name: cut(it, _LONGEST) if isinstance(it, str) else it for name, it in span.details.items()
    }
    return {**event, "pid": process, "tid": span.lane + 1, "args": details}
