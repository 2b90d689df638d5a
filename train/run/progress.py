"""Progress of work in stages, on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich import progress as rich_progress
from rich.console import Console


class StageProgress:
    """A progress bar a stage, with its latest figures and the time left."""

    def __init__(self, console: Console) -> None:
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
            rich_progress.TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._tasks: dict[str, rich_progress.TaskID] = {}
        self._shown = 0.0

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def step(self, stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Show that `done` of `total` steps of a stage are finished."""
        if stage not in self._tasks:
            # What was done before a restart does not count in the estimate of the time left.
            self._tasks[stage] = self._bar.add_task(
                stage, total=total, completed=max(0, done - 1), figures=""
            )
        now = time.monotonic()
        if done == total or now - self._shown > 0.2:
            self._shown = now
            text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            self._bar.update(self._tasks[stage], completed=done, figures=text)
