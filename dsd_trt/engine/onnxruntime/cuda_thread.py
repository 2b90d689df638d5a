"""The thread of a GPU: one a process, on which all of its engines work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from dsd_trt.engine.cuda import use_device

T = TypeVar("T")

_workers: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by process and device
_starting = threading.Lock()


def on_gpu_thread(device: int, work: Callable[[], T]) -> T:
    """Run work on the thread that has a GPU, one for all engines of a process.

    CUDA graphs and handles of ONNX Runtime belong to the thread that ran first. While one is
    recorded, no other thread may allocate or free memory. CUDA's current device is one a thread,
    and the caller's own stays what it is.

    Args:
        device: number of the GPU, from 0.
        work: function without arguments, whose result is returned.
    """
    with _starting:
        key = os.getpid(), device  # a forked child has no threads of its parent
        if (worker := _workers.get(key)) is None:
            worker = _workers[key] = ThreadPoolExecutor(1, f"cuda-{device}")
    if threading.current_thread().name.startswith(f"cuda-{device}_"):
        return work()

    def there() -> T:
        use_device(device)
        return work()

    try:
        future = worker.submit(there)
    except RuntimeError:  # the interpreter is ending: nothing else runs any more
        return there()
    try:
        return future.result()
    finally:
        wait([future])  # after Ctrl-C, too: a pass that runs on would hold the engine's buffers
