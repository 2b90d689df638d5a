"""Processes under a limit of memory: in a control group, or with RLIMIT_DATA."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_ENTER = 'echo $$ > "$0" && exec "$@"'


class NoGroupError(Exception):
    """This process may not make control groups."""


@contextlib.contextmanager
def _group(limit: int) -> Iterator[Path]:
    """A control group of this many bytes, in version 1 or 2; the system kills what exceeds it."""
    found = dict(
        line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text("ascii").splitlines()
    )
    first = "memory" in found
    top = _GROUPS / "memory" if first else _GROUPS
    own = found.get("memory", found.get("", "/")).lstrip("/")
    group = top / own / f"dsd-trt-test-{os.getpid()}"
    # Without swap, in which a process could outlive the limit. Not every system counts it.
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    files = names if first else ("memory.max", "memory.swap.max")
    try:
        group.mkdir()
    except OSError as error:
        raise NoGroupError(str(error)) from error
    try:
        try:
            (group / files[0]).write_text(str(limit))
            with contextlib.suppress(OSError):
                (group / files[1]).write_text(str(limit if first else 0))
        except OSError as error:
            raise NoGroupError(str(error)) from error
        yield group
    finally:
        group.rmdir()


def run_limited(
    command: Sequence[str], limit: int, *, group: bool
) -> subprocess.CompletedProcess[str]:
    """Run a command that may take so much memory.

    Args:
        command: program and arguments.
        limit: number of bytes.
        group: whether a control group holds the limit, which counts pages in use; else it is one of
            the process's writable private mappings, used or not.

    Raises:
        NoGroupError: control groups cannot be made here.
    """
    run = partial(subprocess.run, capture_output=True, text=True, check=False, timeout=120)
    if not group:
        bounded = partial(resource.setrlimit, resource.RLIMIT_DATA, (limit, limit))
        return run(command, preexec_fn=bounded)
    with _group(limit) as place:
        return run(["sh", "-c", _ENTER, str(place / "cgroup.procs"), *command])
