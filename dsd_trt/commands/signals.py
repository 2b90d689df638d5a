"""Signals that end a command: with cleanup if it is quick, and soon in any case."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

GRACE = 2.0
"""Seconds a command has after a signal to remove unfinished files."""

INTERRUPTED = 130
"""Exit code of a command that was ended by a signal."""

_ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def end_at_once() -> None:
    """Let signals end the process without a message, as before and after its work."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored by nohup
            signal.signal(number, signal.SIG_DFL)


def end_interrupted() -> NoReturn:
    """End the process now, with the message and the exit code of a signal."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Let signals raise KeyboardInterrupt, and end the process if the block takes too long.

    Python notifies the main thread only between bytecodes: not during an engine's run of seconds
    or a blocked read. A separate thread is notified at once.

    An interrupt during an object's finalizer is printed by Python and ignored. Python's message is
    suppressed, and the process still ends.
    """
    receiving, sending = os.pipe()
    if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12, which needs none
        os.set_blocking(sending, False)
    before = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    shown = sys.unraisablehook
    sys.unraisablehook = lambda it: None if it.exc_type is KeyboardInterrupt else shown(it)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(receiving, ended), name="signals", daemon=True)
    try:
        watch.start()
    except RuntimeError:  # a limit of threads: a signal then waits for the end of an engine's run
        signal.set_wakeup_fd(before)
        os.close(receiving)
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
    """End the process `GRACE` seconds after a signal, unless the block has ended."""
    try:
        while number := os.read(receiving, 1):
            if number[0] in _ENDING and not ended.wait(GRACE):
                end_interrupted()
    finally:
        os.close(receiving)
