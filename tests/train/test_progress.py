"""Progress of training where stderr is no terminal: a line per stage, and how long it takes."""

from __future__ import annotations

import io
import re
import sys
from itertools import pairwise

import click
import pytest
from click.testing import CliRunner
from clock import Clock

from dsd_trt.commands import log, remaining
from dsd_trt.train.run import progress as module
from dsd_trt.train.run.progress import StageProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(remaining, "time", clock)
    return clock


def _train(clock: Clock, steps: int = 100) -> None:
    with StageProgress() as progress:
        progress.begin("reading the model")
        clock.now += 5
        for step in range(1, steps + 1):
            progress.step("training", step, steps, {"loss": 1 / step})
            clock.now += 2.0
        progress.step("comparing", 0, None)


def test_a_log_has_a_line_per_stage_and_every_ten_seconds_with_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(clock, 20)
    assert capsys.readouterr().err.splitlines() == [
        "[0 s] reading the model",
        "[5 s] training",
        "training: about 40 seconds to go",
        "[15 s] training: 6 of 20  loss 0.167  about 30 seconds to go",
        "[25 s] training: 11 of 20  loss 0.091  about 20 seconds to go",
        "[35 s] training: 16 of 20  loss 0.062  about 10 seconds to go",
        "[43 s] training: 20 of 20  loss 0.050",
        "[45 s] comparing",
    ]


def test_lines_of_a_long_training_come_every_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(clock, 1800)  # an hour
    lines = re.findall(r"\[(\d+) s\] training: .*", capsys.readouterr().err)
    times = list(map(int, lines))
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[:5] == [10] * 5
    assert gaps[:-1] == sorted(gaps[:-1])  # the last line is the end's
    assert gaps[-10:-1] == [60] * 9


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
