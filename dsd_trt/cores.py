"""Cores of the processor that this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Number of cores: `taskset` or a container may grant fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
