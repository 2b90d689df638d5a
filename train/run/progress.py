"""Progress of work in stages: bars on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich import progress as rich_progress

from dsd_trt.commands.console import progress_bars
from dsd_trt.commands.log import note
from dsd_trt.commands.remaining import Remaining, duration

_SHORTEST, _LONGEST = 10.0, 60.0  # seconds between lines: a tenth of what the stage has taken


class StageProgress:
    """One progress bar per stage, with its latest metrics and the remaining time.

    If stderr is no terminal, a line when a stage begins, one every 10 seconds and later every
    minute, and one at its end. On both, a line says once how long a stage still takes, if that is
    long.
    """

    def __init__(self) -> None:
        self._bar = progress_bars(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
            rich_progress.TextColumn("{task.fields[figures]}"),
        )
        self._lines = not sys.stderr.isatty()
        self._tasks: dict[str, rich_progress.TaskID] = {}
        self._left: dict[str, Remaining] = {}
        self._stage_began: dict[str, float] = {}
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> StageProgress:
        if not self._lines:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._lines:
            self._bar.stop()

    def begin(self, stage: str) -> None:
        """Show a stage that tells nothing until the next one begins, such as reading a model."""
        self.step(stage, 0, None)

    def step(
        self, stage: str, done: int, total: int | None, figures: Mapping[str, float] | None = None
    ) -> None:
        """Show the progress of a stage.

        Args:
            stage: name of the stage, which begins with the first call.
            done: number of completed steps.
            total: number of all steps; None if it is not known.
            figures: latest metrics by name, such as the loss; None for none.
        """
        if begins := stage not in self._left:
            self._left[stage] = Remaining(stage)
            self._stage_began[stage] = time.monotonic()
        text = "  ".join(f"{name} {value:.3f}" for name, value in (figures or {}).items())
        if self._lines:
            self._line(stage, done, total, text, begins=begins)
        else:
            self._draw(stage, done, total, text)
        self._left[stage].step(done, total)

    def _draw(self, stage: str, done: int, total: int | None, figures: str) -> None:
        if stage not in self._tasks:
            for task in self._bar.tasks:
                if task.total is None:  # it has ended, as another begins
                    self._bar.remove_task(task.id)
            # Steps done before a restart must not count in the estimate of the remaining time.
            self._tasks[stage] = self._bar.add_task(
                stage, total=total, completed=max(0, done - 1), figures=""
            )
        now = time.monotonic()
        if done == total or now - self._shown > 0.2:
            self._shown = now
            self._bar.update(self._tasks[stage], completed=done, figures=figures)

    def _line(
        self, stage: str, done: int, total: int | None, figures: str, *, begins: bool
    ) -> None:
        now = time.monotonic()
        every = min(max((now - self._stage_began[stage]) / 10, _SHORTEST), _LONGEST)
        if not begins and done != total and now - self._shown < every:
            return
        self._shown = now
        left = self._left[stage].left(done, total)
        if left is not None and done != total:
            figures += f"  {duration(left)} to go"
        at = f"{done}" if total is None else f"{done} of {total}"
        told = stage if begins and done != total else f"{stage}: {at}  {figures}"
        note(f"[{now - self._began:.0f} s] {told.rstrip()}")
