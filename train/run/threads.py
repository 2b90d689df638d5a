"""Threads of PyTorch's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Compute with a number of threads within the block.

    Args:
        threads: number of threads; None leaves it as it is.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """Compute on one thread within the block.

    The kernels of a small model take microseconds, less than their threads take to meet. If other
    programs use the cores, each meeting waits for the scheduler, and a pass takes ten times as
    long.
    """
    return computing_with(1)
