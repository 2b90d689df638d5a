"""Progress and warnings of commands, on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from dsd_trt.results import Progress


@contextlib.contextmanager
def warnings_on(console: Console) -> Iterator[None]:
    """Print the package's log on stderr, above the progress bar if there is one."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(f"{record.levelname.lower()}: {record.getMessage()}")

    handler, logger = Handler(), logging.getLogger("dsd_trt")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


_LINE_EVERY = 60.0  # seconds


@contextlib.contextmanager
def progress_bar(console: Console, unit: str) -> Iterator[Progress]:
    """A bar with throughput and remaining time; if stderr is no terminal, one line per minute."""
    if not sys.stderr.isatty():
        yield _progress_lines(console, unit)
        return
    from rich import progress

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(f"{unit}  {{task.fields[rate]:.1f}} {unit}/s "),
        progress.TimeRemainingColumn(),
        progress.TextColumn("left"),
    )
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, rate=0.0)

        def show(done: int, total: int | None) -> None:
            elapsed = bar.tasks[task].elapsed or 0
            bar.update(task, completed=done, total=total, rate=done / elapsed if elapsed else 0)

        yield show


def _progress_lines(console: Console, unit: str) -> Progress:
    said = time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal said
        if (now := time.monotonic()) - said >= _LINE_EVERY:
            said = now
            console.print(f"{done} {unit}" if total is None else f"{done} of {total} {unit}")

    return show


def stage_lines(console: Console) -> Callable[[str], None] | None:
    """Callback `(name)` that prints a line with the time as a stage begins; None on a terminal.

    A log then shows how far a command came that was stopped, and where its time went.
    """
    if console.is_terminal:
        return None
    began = time.monotonic()

    def begin(name: str) -> None:
        elapsed = time.monotonic() - began
        console.print(f"[{elapsed:.0f} s] {name}", markup=False, highlight=False, soft_wrap=True)

    return begin
