"""Memory: what this process is granted, against what the bundle takes on an engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.doctor.budget import BUDGET
from dsd_trt.doctor.control_group import granted
from dsd_trt.doctor.finding import Finding
from dsd_trt.doctor.studied import Needs
from dsd_trt.engine import ON_GPU

# Both are assumptions, as docs/doctor.md says; it has the command that measures a bundle.
PROGRAM = 70 * 2**20
"""Bytes of a process without a bundle: Python, its packages and an engine's library."""

_COPIES = {"openvino": 4, "openvino-bf16": 4, "onnxruntime": 2}
"""Bytes that an engine holds per byte of weights on disk: FP32 in place of FP16, OpenVINO twice."""

_MIB = 2**20


@dataclass(frozen=True)
class Room:
    """The least of all that bounds the memory of this process.

    Attributes:
        bytes: number of bytes that it can still take.
        why: what bounds it, for people.
        remedy: command that raises the bound.
    """

    bytes: int
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{_size(self.bytes)} can be used ({self.why})"


def examine(needs: Needs | None, engine: str | None) -> Iterator[Finding]:
    """Memory of the machine, the container and the process.

    Args:
        needs: what the bundle needs; None if that is not known.
        engine: name of the engine that will score; None if none works.
    """
    machine, free = _machine()
    room = tightest()
    facts: dict[str, int | str | None] = {
        "machine_bytes": machine,
        "free_bytes": free,
        "limit_bytes": granted().memory,
        "engine": engine,
    }
    if room is None:
        yield Finding("memory", "ok", "this system does not tell", "", facts)
        return
    facts["usable_bytes"] = room.bytes
    if needs is None or engine is None or engine in ON_GPU:
        yield Finding("memory", "ok", str(room), "", facts)
        return
    fixed = PROGRAM + _COPIES.get(engine, 2) * needs.weight_bytes
    least, usual = fixed + needs.least_bytes, fixed + needs.usual_bytes
    facts |= {"least_bytes": least, "usual_bytes": usual}
    takes = f"the bundle takes {_size(least)} to {_size(usual)} on {engine}, by estimate"
    if room.bytes < least:
        yield Finding("memory", "fault", f"{room}, and {takes}", room.remedy, facts)
    elif room.bytes < usual:
        budget = (room.bytes - fixed) // _MIB
        remedy = f"export {BUDGET}={budget}"
        yield Finding("memory", "warning", f"{room}, and {takes}", remedy, facts)
    else:
        yield Finding("memory", "ok", f"{room}; {takes}", "", facts)


def tightest() -> Room | None:
    """What bounds the memory of this process first; None where the system does not tell."""
    return min(_rooms(_machine()[1]), key=lambda it: it.bytes, default=None)


def _rooms(free: int | None) -> Iterator[Room]:
    if free is not None:
        yield Room(free, "free on this machine", "ps -eo rss,pid,comm --sort -rss")
    found = granted()
    if found.memory is not None:
        left = max(found.memory - found.memory_used, 0)
        why = f"of the control group's limit of {_size(found.memory)}"
        yield Room(left, why, "docker update --memory LARGER CONTAINER")
    for name, option in (("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")):
        if (limit := _resource(name)) is not None:
            yield Room(limit, f"{name}, ulimit {option}", f"ulimit {option} unlimited")


def _resource(name: str) -> int | None:
    """Soft limit of a resource in bytes; None if there is none."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(getattr(resource, name))
    return None if limit == resource.RLIM_INFINITY else limit


def _machine() -> tuple[int | None, int | None]:
    """Bytes of memory that the machine has, and that are free; None where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        told = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return told["MemTotal"], told["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, OSError, ValueError):
        return None, None


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / _MIB:.0f} MiB"
