"""Images decoded ahead by several threads, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dsd_trt.cores import usable_cores

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_MOST_THREADS = 16
_MOST_BYTES = 2**28  # of encoded images that are held


def decoding_threads() -> int:
    """Number of threads that decode: one for each core that the process may use, at most 16."""
    return min(usable_cores(), _MOST_THREADS)


def decoding_pool() -> ThreadPoolExecutor:
    """Threads that decode; `shutdown(cancel_futures=True)` ends them."""
    return ThreadPoolExecutor(decoding_threads(), "decode")


def decoded_in_order(
    decode: Callable[[Item], Outcome],
    items: Iterable[Item],
    ahead: int,
    size: Callable[[Item], int] = lambda item: 0,
) -> Iterator[tuple[Item, Outcome]]:
    """Decode items in several threads, and yield them in their order.

    Args:
        decode: function of an item, called in any of the threads.
        items: what to decode, consumed in the caller's thread.
        ahead: number of items that are decoded, or wait for a thread, before they are asked for.
        size: number of bytes an item holds until it is yielded. Fewer items are taken ahead if
            they are large, but always one.

    Raises:
        Exception: what `decode` or `items` raised, in the item's turn.
    """
    waiting: deque[tuple[Item, Future[Outcome]]] = deque()
    source, ended = iter(items), False
    pool = decoding_pool()
    try:
        while True:
            while not ended and _may_take(waiting, ahead, size):
                try:
                    item = next(source)
                except StopIteration:
                    ended = True
                else:
                    waiting.append((item, pool.submit(decode, item)))
            if not waiting:
                return
            item, outcome = waiting.popleft()
            yield item, outcome.result()
    finally:  # also if the caller stops early: no thread may keep decoding
        pool.shutdown(cancel_futures=True)


def _may_take(
    waiting: deque[tuple[Item, Future[Outcome]]], ahead: int, size: Callable[[Item], int]
) -> bool:
    held = sum(size(item) for item, _ in waiting)
    return not waiting or (len(waiting) <= ahead and held < _MOST_BYTES)
