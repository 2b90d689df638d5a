"""Control groups of Linux: what a container, a service or a batch system grants this process.

Versions 1 and 2 are read. A limit of any group around the own one holds, so what counts is the
group that leaves least. A group's use has that of all groups in it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NO_LIMIT = 2**60  # bytes; version 1 writes a number of this size where there is none


@dataclass(frozen=True)
class Granted:
    """Limits of the control groups around this process.

    Attributes:
        cores: processor time per time, as a number of cores; None without a quota.
        memory: limit in bytes of the group that leaves least; None without a limit.
        memory_used: bytes in use within that limit, without pages that can be taken back.
        tasks: processes and threads that may yet be started; None without a limit.
    """

    cores: float | None = None
    memory: int | None = None
    memory_used: int = 0
    tasks: int | None = None


def granted(process: Path = Path("/proc/self")) -> Granted:
    """What the groups of a process grant; nothing is limited where there are no groups.

    Args:
        process: folder of the process in the file system of processes.
    """
    cores = min(filter(None, map(_quota, _groups(process, "cpu"))), default=None)
    limits = [(_memory(it), it) for it in _groups(process, "memory")]
    found = [(limit, _used(group)) for limit, group in limits if limit is not None]
    left = [it for it in map(_tasks, _groups(process, "pids")) if it is not None]
    tasks = min(left, default=None)
    if not found:
        return Granted(cores, tasks=tasks)
    limit, used = min(found, key=lambda it: it[0] - it[1])
    return Granted(cores, limit, used, tasks)


def _groups(process: Path, controller: str) -> Iterator[Path]:
    """Folders of the own group and all around it that have a controller, the own one first."""
    try:
        named = (process / "cgroup").read_bytes().splitlines()
        mounts = (process / "mountinfo").read_bytes().splitlines()
    except OSError:
        return
    own = dict[str, str]()
    for line in map(os.fsdecode, named):
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)  # "" in version 2
    for line in map(os.fsdecode, mounts):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, top = (_unescaped(it) for it in before.split(" ")[3:5])
        second = kind == "cgroup2"
        if not second and not (kind == "cgroup" and controller in options.split(",")):
            continue
        if (place := own.get("" if second else controller)) is None:
            continue
        # A container may see its group as the top, while its path is relative to the machine's.
        whole = PurePosixPath(place)
        group = Path(top, whole.relative_to(root) if whole.is_relative_to(root) else "")
        while True:
            yield group
            if group == Path(top) or group == group.parent:
                break
            group = group.parent


def _unescaped(path: str) -> str:
    """A path of mountinfo, in which spaces and backslashes are octal numbers of bytes."""
    plain = re.sub(rb"\\([0-7]{3})", lambda it: bytes([int(it[1], 8) & 255]), os.fsencode(path))
    return os.fsdecode(plain)


def _quota(group: Path) -> float | None:
    words = _words(group / "cpu.max")  # version 2: "150000 100000", or "max 100000"
    if not words:  # version 1
        words = [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
    with contextlib.suppress(ValueError, ZeroDivisionError):
        quota, period = map(int, words)
        return quota / period if quota > 0 else None
    return None


def _memory(group: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        for word in _words(group / name):
            with contextlib.suppress(ValueError):
                return limit if (limit := int(word)) < _NO_LIMIT else None
    return None


def _used(group: Path) -> int:
    used = [*_words(group / "memory.current"), *_words(group / "memory.usage_in_bytes"), "0"]
    words = _words(group / "memory.stat")
    counts = dict(zip(words[::2], words[1::2], strict=False))
    cached = counts.get("total_inactive_file", counts.get("inactive_file", "0"))
    return max(int(used[0]) - int(cached), 0)


def _tasks(group: Path) -> int | None:
    with contextlib.suppress(ValueError):
        (limit,), (used,) = _words(group / "pids.max"), _words(group / "pids.current")
        return max(int(limit) - int(used), 0)
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").split()
    except OSError:
        return []
