"""Threads: what the machine has, and what this process may use of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from dsd_trt.cores import usable_cores
from dsd_trt.doctor.control_group import granted
from dsd_trt.doctor.finding import Finding
from dsd_trt.errors import counted

_VARIABLE = "DSD_TRT_THREADS"
_PER_CORE = 4  # threads of an engine, of numpy and of reading images
MORE_TASKS = "docker update --pids-limit -1 CONTAINER"
"""Command that lifts a container's limit of processes and threads."""


def examine() -> Iterator[Finding]:
    """Cores of the machine, cores that this process may run on, and its quota of their time."""
    found = granted()
    machine, allowed, quota = os.cpu_count() or 1, usable_cores(), found.cores
    given = os.environ.get(_VARIABLE, "")
    used = int(given) if given.isdecimal() and int(given) else allowed
    # Half a core more is worth a thread more: both wait a little.
    fair = allowed if quota is None else min(max(math.ceil(quota), 1), allowed)
    facts = {
        "machine": machine,
        "allowed": allowed,
        "quota": quota,
        "engines_start": used,
        "fair": fair,
    }
    of = f"of the machine's {counted(machine, 'core')}"
    if used > fair and quota is not None and quota < allowed:
        yield Finding(
            "threads",
            "warning",
            f"a quota (docker run --cpus, Kubernetes' limits.cpu) grants {_cores(quota)} {of}, and "
            f"engines start {counted(used, 'thread')}, which then wait for each other",
            f"export {_VARIABLE}={fair}",
            facts,
        )
    elif used > fair:
        yield Finding(
            "threads",
            "warning",
            f"{_VARIABLE} is {used}, and this process may run on {counted(allowed, 'core')} {of}",
            f"export {_VARIABLE}={fair}",
            facts,
        )
    else:
        why = "" if allowed == machine else " (taskset, or docker run --cpuset-cpus)"
        share = "" if quota is None else f", with a quota of {_cores(quota)}"
        yield Finding(
            "threads",
            "ok",
            f"this process may run on {allowed} {of}{why}{share}; engines start "
            f"{counted(used, 'thread')}",
            "",
            facts,
        )
    wanted = _PER_CORE * used
    if found.tasks is not None and found.tasks < wanted:
        yield Finding(
            "processes",
            "warning",
            f"a limit of processes and threads (docker run --pids-limit) leaves {found.tasks}, and "
            f"engines may start {wanted}",
            MORE_TASKS,
            {"left": found.tasks, "wanted": wanted},
        )


def _cores(quota: float) -> str:
    return counted(1, "core") if quota == 1 else f"{quota:g} cores"
