"""Memory of images that are being decoded, shared by all threads of the process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from dsd_trt.limits import IMAGE_PIXELS


class Room:
    """Bounds the pixels that all threads decode at once to those that one image may have.

    Several threads therefore take no more memory than one that decodes the largest image. A thread
    that waits holds no pixels, so threads never wait for each other in a circle.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # reentrant: a signal handler may interrupt
        self._used = 0
        self._own = threading.local()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A block that decodes one image; the outermost one of a thread gives its pixels back."""
        depth: int = getattr(self._own, "depth", 0)
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            if not depth:
                with self._changed:
                    self._used -= getattr(self._own, "pixels", 0)
                    self._own.pixels = 0
                    self._changed.notify_all()

    def take(self, pixels: int) -> None:
        """Wait until there is room for an image of this many pixels.

        A thread that has room already gets more at once: it could never be given back while it
        waits. An image that is larger than the bound is decoded alone.
        """
        with self._changed:
            if (own := getattr(self._own, "pixels", 0)) < pixels:
                while not own and self._used and self._used + pixels > IMAGE_PIXELS.value():
                    self._changed.wait()
                self._used += pixels - own
                self._own.pixels = pixels


ROOM = Room()

if hasattr(os, "register_at_fork"):  # a child has none of the threads that took room
    os.register_at_fork(after_in_child=ROOM.__init__)  # type: ignore[misc]
