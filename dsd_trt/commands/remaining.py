"""How long a command still takes: said once, as soon as its first steps have shown it."""

from __future__ import annotations

import time

from dsd_trt.commands.log import note

_MEASURED = 2.0  # seconds of work that an estimate is made of
_WORTH_SAYING = 20.0  # seconds
_COMPUTED = 5e-3  # seconds per step; faster ones were read from an interrupted run's file


class Remaining:
    """Notes once how long a stage still takes, if that is long.

    Args:
        stage: words for what is done, such as "training".
        done: number of steps that are done already, from which time is measured; None measures
            from the first call of `step`.
    """

    def __init__(self, stage: str, done: int | None = None) -> None:
        self._stage = stage
        self._before = None if done is None else (time.monotonic(), done)
        self._seconds, self._steps, self._said = 0.0, 0, False

    def step(self, done: int, total: int | None) -> None:
        """Measure the steps since the last call, and note what is left once they tell it.

        Args:
            done: number of steps that are done.
            total: number of all steps; None if it is not known, which tells nothing.
        """
        if total is None:
            return
        now = time.monotonic()
        if self._before is not None:
            seconds, steps = now - self._before[0], done - self._before[1]
            if steps > 0 and seconds >= steps * _COMPUTED:
                self._seconds, self._steps = self._seconds + seconds, self._steps + steps
        self._before = now, done
        if not self._said and self._steps and self._seconds >= _MEASURED:
            self._said = True
            left = self._seconds / self._steps * (total - done)
            if left >= _WORTH_SAYING:
                note(f"{self._stage}: {duration(left)} to go")

    def left(self, done: int, total: int | None) -> float | None:
        """Seconds that the rest takes; None as long as too little was measured to tell.

        Args:
            done: number of steps that are done.
            total: number of all steps; None if it is not known.
        """
        if total is None or not self._said:
            return None
        return self._seconds / self._steps * (total - done)


def duration(seconds: float) -> str:
    """Words such as "about 40 seconds", with one or two digits."""
    if seconds < 90:
        return f"about {10 * max(1, round(seconds / 10))} seconds"
    if seconds < 5400:
        return f"about {round(seconds / 60)} minutes"
    if seconds < 48 * 3600:
        return f"about {round(seconds / 3600)} hours"
    return f"about {round(seconds / 86400)} days"
