"""Freed memory: kept by malloc for faster training, or returned for a smaller export."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Make malloc reuse activation buffers instead of returning them at every step.

    On a CPU this saves up to half of a small model's training time. It has no effect without
    glibc.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 2**28)


def return_freed_memory() -> None:
    """Make malloc return every large buffer at once, the opposite of `keep_freed_memory`.

    By default malloc learns to keep buffers of up to 32 MB. With gigabytes of weights, these add
    up to gigabytes. It has no effect without glibc.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**20)


def release_freed_memory() -> None:
    """Collect reference cycles, such as traced programs, and return freed memory to the kernel.

    Without glibc, cycles are collected but memory is not returned.
    """
    gc.collect()
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(function: str) -> Any:
    """A function of glibc; None on another platform or C library."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), function, None)
