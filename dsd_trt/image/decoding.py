"""Images decoded ahead by several threads, in their order."""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dsd_trt.cores import usable_cores
from dsd_trt.spans import span

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_MOST_THREADS = 16
MOST_BYTES = 2**28
"""Bytes of images that are held because they are decoded ahead."""


def decoding_threads() -> int:
    """Number of threads that decode: one for each core that the process may use, at most 16."""
    return min(usable_cores(), _MOST_THREADS)


def decoding_pool() -> ThreadPoolExecutor:
    """Threads that decode; `shutdown(cancel_futures=True)` ends them."""
    return ThreadPoolExecutor(decoding_threads(), "decode")


def images_ahead(batch: int) -> int:
    """Number of images to decode ahead: the next batch of an engine, and two for each thread.

    Threads have work even if the engine takes single images.
    """
    return batch + 2 * decoding_threads()


def decoded_in_order(
    decode: Callable[[Item], Outcome],
    items: Iterable[Item],
    ahead: int,
    size: Callable[[Item], int] = lambda item: 0,
) -> Generator[tuple[Item, Outcome], None, None]:
    """Decode items in several threads, and yield them in their order.

    Args:
        decode: function of an item, called in any of the threads.
        items: what to decode, consumed in the caller's thread.
        ahead: number of items that are decoded, or wait for a thread, before they are asked for.
        size: number of bytes an item holds until it is yielded, decoded or not. Fewer items are
            taken ahead if they are large, but always one: together at most 256 MiB, and one more.

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
                    within = contextvars.copy_context()  # the caller's trace
                    waiting.append((item, pool.submit(within.run, decode, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, _outcome(future)
    finally:  # also if the caller stops early: no thread may keep decoding
        pool.shutdown(cancel_futures=True)


def _outcome(future: Future[Outcome]) -> Outcome:
    if future.done():
        return future.result()
    with span("waiting for a picture"):
        return future.result()


def _may_take(
    waiting: deque[tuple[Item, Future[Outcome]]], ahead: int, size: Callable[[Item], int]
) -> bool:
    held = sum(size(item) for item, _ in waiting)
    return not waiting or (len(waiting) <= ahead and held < MOST_BYTES)
