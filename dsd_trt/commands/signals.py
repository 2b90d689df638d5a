"""Signals that end a command: in order where that takes a moment, and soon in any case."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

GRACE = 2.0
"""Seconds that a command has to remove what is half-written, from the signal on."""

INTERRUPTED = 130
"""What a command exits with that a signal has ended."""

_ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def end_at_once() -> None:
    """Let signals end the process without a word, as before its work and after it."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.SIG_DFL)


def end_interrupted() -> NoReturn:
    """End the process now, with the word and the exit code that a signal has."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Let signals raise KeyboardInterrupt, and end the process if the block goes on for long.

    Python tells the main thread of a signal when it comes back from what it is at, such as a pass
    of seconds in an engine, or a read that nobody answers. A thread of its own hears at once. Where
    an object is just being dropped, Python prints the exception and goes on; nobody wants to read
    that, and the process ends all the same.
    """
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    before = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    shown = sys.unraisablehook
    sys.unraisablehook = lambda it: None if it.exc_type is KeyboardInterrupt else shown(it)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(receiving, ended), name="signals", daemon=True)
    watch.start()
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        ended.set()
        sys.unraisablehook = shown
        signal.set_wakeup_fd(before)
        os.close(sending)


def _watch(receiving: int, ended: threading.Event) -> None:
    """End the process some time after a signal, unless the block has ended by then."""
    try:
        while number := os.read(receiving, 1):
            if number[0] in _ENDING and not ended.wait(GRACE):
                end_interrupted()
    finally:
        os.close(receiving)
