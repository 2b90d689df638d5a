"""A pytest plugin: count what torture tests tried and found, and record it for the report.

    DSD_TORTURE_FIGURES   file to which every test appends a JSON line; unset records nothing
    DSD_TORTURE_SCALE     share of the full counts to try, 1 by default

`tools/make_reliability.py` turns the lines into docs/reliability.md. Figures come from counters
that a test increments as it goes, never from planned numbers.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCALE = float(os.environ.get("DSD_TORTURE_SCALE", "1"))
FAULTS = (
    "lost",
    "doubled",
    "half-written",
    "wrong",
    "hung",
    "foreign exceptions",
    "left behind",
    "bytes sent",
)
SLICE = SCALE < 0.1
"""Whether tests that take minutes per round are left out."""
not_in_a_slice = pytest.mark.skipif(SLICE, reason="too long for a slice")

_REPORTS = pytest.StashKey[list[pytest.TestReport]]()


def scaled(count: int, least: int = 1) -> int:
    """Scale a full run's count to this run, with a lower limit."""
    return max(least, round(count * SCALE))


@dataclass
class Figures:
    """Counts of one test.

    Attributes:
        what: row of the report that the counts belong to.
        looked_for: kinds of fault that the test can detect, see `FAULTS`.
        tried: number of attempts so far.
        faults: number of faults per kind.
        told: description of each fault.
        outcomes: number of attempts per outcome, such as "read" or "refused".
        measured: quantities with their unit in the name, such as "MiB at the end".
    """

    what: str = ""
    looked_for: tuple[str, ...] = ()
    tried: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    measured: dict[str, float] = field(default_factory=dict)

    def look_for(self, what: str, *faults: str) -> Figures:
        """Name the row of the report, and the kinds of fault that the test can detect."""
        assert set(faults) <= set(FAULTS), faults
        self.what, self.looked_for = what, faults
        return self

    def ended(self, outcome: str = "", count: int = 1) -> None:
        """Count finished attempts, with their outcome."""
        self.tried += count
        if outcome:
            self.outcomes[outcome] += count

    def fault(self, kind: str, told: object) -> None:
        """Count a fault; the test continues and fails at its end."""
        assert kind in self.looked_for, kind
        self.faults[kind] += 1
        self.told.append(f"{kind}: {told}")

    @contextmanager
    def attempt(self, kind: str, told: object = "") -> Iterator[None]:
        """Count an attempt; an AssertionError in the block is a fault of this kind."""
        try:
            yield
        except AssertionError as error:
            self.fault(kind, f"{told} {error}".strip())
        self.ended()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Counts of this test; at its end they are recorded and all faults are raised."""
    found = Figures()
    began = time.monotonic()
    yield found
    reports = request.node.stash.get(_REPORTS, [])
    broken = [str(it.longrepr).strip().splitlines()[-1] for it in reports if it.failed]
    if not any(it.skipped for it in reports):
        _write(request.node, found, broken, time.monotonic() - began)
    assert not found.told, "\n".join(found.told[:40])


def _write(item: pytest.Item, found: Figures, broken: list[str], seconds: float) -> None:
    assert broken or (found.what and found.tried), "nothing was counted"
    if not (path := os.environ.get("DSD_TORTURE_FIGURES")):
        return
    line = {
        "test": item.nodeid,
        "what": found.what or item.name,
        "looked for": found.looked_for,
        "tried": found.tried,
        "faults": found.faults,
        "told": found.told[:10],
        "broken": broken,
        "outcomes": found.outcomes,
        "measured": found.measured,
        "seconds": round(seconds, 2),
        "scale": SCALE,
        "python": platform.python_version(),
    }
    with Path(path).open("ab", buffering=0) as file:  # one write, so that lines never interleave
        file.write(json.dumps(line).encode() + b"\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Store a test's outcome where its fixtures can read it."""
    report = yield
    item.stash.setdefault(_REPORTS, []).append(report)
    return report
