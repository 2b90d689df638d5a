"""How long a command still takes, on a clock that the tests turn."""

from __future__ import annotations

import pytest
from clock import Clock

from dsd_trt.commands import remaining
from dsd_trt.commands.remaining import Remaining, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(remaining, "time", clock)
    return clock


def test_it_is_said_once_when_two_seconds_of_work_were_measured(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    left = Remaining("training")
    for step in range(1, 6):  # the first call only begins the measurement
        left.step(step, 200)
        clock.now += 0.6
    assert capsys.readouterr().err == "training: about 2 minutes to go\n"  # 195 steps of 0.6 s
    clock.now += 1000
    left.step(7, 200)
    assert capsys.readouterr().err == ""


def test_the_first_step_counts_where_the_begin_is_known(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    left = Remaining("asking questions", done=0)
    clock.now += 90
    left.step(1, 101)
    assert capsys.readouterr().err == "asking questions: about 2 hours to go\n"


def test_steps_of_an_interrupted_run_do_not_count(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    left = Remaining("scoring", done=0)
    clock.now += 0.4
    left.step(400, 500)  # read from a file
    clock.now += 30
    left.step(401, 500)
    assert capsys.readouterr().err == "scoring: about 50 minutes to go\n"


@pytest.mark.parametrize(("done", "total"), [(95, 100), (50, None)])
def test_what_is_short_or_unknown_is_not_said(
    clock: Clock, capsys: pytest.CaptureFixture[str], done: int, total: int | None
) -> None:
    left = Remaining("scoring", done=0)
    clock.now += 100
    left.step(done, total)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "about 10 seconds"),
        (44, "about 40 seconds"),
        (89, "about 90 seconds"),
        (91, "about 2 minutes"),
        (3000, "about 50 minutes"),
        (7300, "about 2 hours"),
        (47 * 3600, "about 47 hours"),
        (60 * 3600, "about 2 days"),
    ],
)
def test_a_duration_has_one_or_two_digits(seconds: float, words: str) -> None:
    assert duration(seconds) == words
