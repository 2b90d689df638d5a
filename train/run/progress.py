"""Progress bars for work in stages, on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich import progress as rich_progress

from dsd_trt.commands.console import progress_bars


class StageProgress:
    """One progress bar per stage, with its latest metrics and the remaining time."""

    def __init__(self) -> None:
        self._bar = progress_bars(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
            rich_progress.TextColumn("{task.fields[figures]}"),
        )
        self._tasks: dict[str, rich_progress.TaskID] = {}
        self._shown = 0.0

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def step(self, stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Show the progress of a stage.

        Args:
            stage: name of the stage, whose bar is added at the first call.
            done: number of completed steps.
            total: number of all steps.
            figures: latest metrics by name, such as the loss.
        """
        if stage not in self._tasks:
            # Steps done before a restart must not count in the estimate of the remaining time.
            self._tasks[stage] = self._bar.add_task(
                stage, total=total, completed=max(0, done - 1), figures=""
            )
        now = time.monotonic()
        if done == total or now - self._shown > 0.2:
            self._shown = now
            text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            self._bar.update(self._tasks[stage], completed=done, figures=text)
