"""What torture tests count is what the report says, faults and crashes included."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import make_reliability
import pytest

TESTS = """
import os
import pytest
from torture import scaled

def test_sound(figures):
    figures.look_for("kills of a command", "lost", "hung")
    for _ in range(scaled(40)):
        figures.ended("whole")
    figures.measured["MiB"] = 3.5

def test_faulty(figures):
    figures.look_for("kills of a command", "lost", "doubled")
    for number in range(5):
        with figures.attempt("doubled", f"kill {number}"):
            assert number != 3, "a row is there twice"

def test_broken(figures):
    figures.look_for("mutated PNG images", "hung")
    figures.ended(count=7)
    raise RuntimeError("not foreseen")

def test_uncounted(figures):
    pass

def test_skipped(figures):
    pytest.skip("nothing to do here")

def test_crashed(figures):
    os._exit(11)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> make_reliability.Run:
    folder = tmp_path_factory.mktemp("tests")
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", str(folder), f"--rootdir={folder}", "-p", "torture"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))
        return make_reliability.run([[*command, "-n", "1", "-q"]], 0.5)


def test_every_test_that_was_not_sound_is_named(ran: make_reliability.Run) -> None:
    assert {name.rpartition("_")[2] for name in ran.failed} == {
        "faulty", "broken", "uncounted", "crashed",
    }  # fmt: skip
    assert {name.rpartition("_")[2] for name in ran.skipped} == {"skipped"}


def test_rows_are_sums_of_what_was_counted(ran: make_reliability.Run) -> None:
    page = make_reliability.render(ran, "make torture")
    assert "| kills of a command | 25 | lost, hung, doubled | 1 doubled |" in page
    assert "| mutated PNG images | 7 | hung | 0 |" in page
    assert "**1 faults** in 3 tests, and 4 tests failed; 25 kills, 7 mutated images" in page
    assert "| kills of a command | 20 whole | MiB: 3.5 |" in page
    assert "at 0.5 of its counts" in page


def test_a_run_that_did_not_begin_is_a_failure() -> None:
    command = [sys.executable, "-m", "pytest", "--no-such-option"]
    assert make_reliability.run([command], 1).failed
