"""Keeping freed memory: glibc hands large buffers back to the kernel, and training pays for it."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Make malloc reuse activation buffers instead of returning them at every step.

    On small models this saves up to half of the time on a CPU. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 2**28)
