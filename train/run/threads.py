"""Threads of PyTorch's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread within the block.

    The kernels of a small model take microseconds, less than their threads take to meet. If other
    programs use the cores, each meeting waits for the scheduler, and a pass takes ten times as
    long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
