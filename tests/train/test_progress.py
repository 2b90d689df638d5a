"""Progress of training where stderr is no terminal: a line per stage, and how long it takes."""

from __future__ import annotations

import io
import sys

import click
import pytest
from click.testing import CliRunner

from dsd_trt.commands import log, remaining
from dsd_trt.train.run import progress as module
from dsd_trt.train.run.progress import StageProgress


class Clock:
    """A clock that stands still unless it is turned."""

    def __init__(self) -> None:
        self.now = 50.0

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(remaining, "time", clock)
    return clock


def _train(clock: Clock) -> None:
    with StageProgress() as progress:
        progress.begin("reading the model")
        clock.now += 5
        for step in range(1, 101):
            progress.step("training", step, 100, {"loss": 1 / step})
            clock.now += 2.0
        progress.step("comparing", 0, None)


def test_a_log_has_a_line_per_stage_and_per_minute_and_the_time_left_once(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(clock)
    assert capsys.readouterr().err.splitlines() == [
        "[0 s] reading the model",
        "[5 s] training",
        "training: about 3 minutes to go",
        "[65 s] training: 31 of 100  loss 0.032",
        "[125 s] training: 61 of 100  loss 0.016",
        "[185 s] training: 91 of 100  loss 0.011",
        "[203 s] training: 100 of 100  loss 0.010",
        "[205 s] comparing",
    ]


def test_quiet_shows_none_of_it(clock: Clock) -> None:
    @click.command()
    @click.pass_context
    def command(context: click.Context) -> None:
        context.meta[log._QUIET] = True
        _train(clock)

    assert CliRunner().invoke(command).output == ""


def test_a_terminal_has_bars_and_the_time_left(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    _train(clock)
    text = shown.getvalue()
    assert "training: about 3 minutes to go" in text
    assert "100/100" in text
    assert "[5 s]" not in text
