"""Progress of commands, on stderr; `-q` shows none."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from dsd_trt.commands.log import is_quiet, note

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn

    from dsd_trt.results import Progress

_LINE_EVERY = 60.0  # seconds


def stderr_console() -> Console:
    """Console for what rich draws on stderr; lines go through `note` and `say`."""
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def progress_bars(*columns: str | ProgressColumn, transient: bool = False) -> Bars:
    """Bars of rich for use in `with`, which `-q` leaves out.

    Args:
        columns: columns of a bar, as rich takes them.
        transient: whether the bars disappear at the end.
    """
    from rich.progress import Progress

    return Progress(
        *columns,
        console=stderr_console(),
        transient=transient,
        # Else results of a redirected stdout would be shown above the bar, and nowhere else.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        # What disappears at the end would leave an empty line in a log.
        disable=is_quiet() or (transient and not sys.stderr.isatty()),
    )


@contextlib.contextmanager
def progress_bar(unit: str) -> Iterator[Progress]:
    """A bar with throughput and remaining time; if stderr is no terminal, one line per minute.

    Args:
        unit: what is counted, such as "pairs".
    """
    if not sys.stderr.isatty():
        yield _progress_lines(unit)
        return
    from rich import progress

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(f"{unit}  {{task.fields[rate]:.1f}} {unit}/s "),
        progress.TimeRemainingColumn(),
        progress.TextColumn("left"),
    )
    with progress_bars(*columns, transient=True) as bar:
        task = bar.add_task("", total=None, rate=0.0)

        def show(done: int, total: int | None) -> None:
            elapsed = bar.tasks[task].elapsed or 0
            bar.update(task, completed=done, total=total, rate=done / elapsed if elapsed else 0)

        yield show


def _progress_lines(unit: str) -> Progress:
    said = time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal said
        if (now := time.monotonic()) - said >= _LINE_EVERY:
            said = now
            note(f"{unit}: {done}" if total is None else f"{done} of {total} {unit}")

    return show


def stage_lines() -> Callable[[str], None] | None:
    """Callback `(name)` that prints a line with the time as a stage begins; None on a terminal.

    A log then shows how far a command came that was stopped, and where its time went.
    """
    if sys.stderr.isatty() and not is_quiet():
        return None
    began = time.monotonic()

    def begin(name: str) -> None:
        note(f"[{time.monotonic() - began:.0f} s] {name}")

    return begin


@contextlib.contextmanager
def stages(first: str = "") -> Iterator[Callable[[str], None]]:
    """Callback `(name)` that shows the stage that begins: beside a spinner, or as `stage_lines`.

    Args:
        first: name beside the spinner until the first stage begins.
    """
    if (begin := stage_lines()) is not None:
        yield begin
        return
    with stderr_console().status(first) as status:
        yield status.update
