"""A pytest plugin: what a torture test tried and found, counted, and written down for the report.

    DSD_TORTURE_FIGURES   file that a JSON line is appended to for every test; none without it
    DSD_TORTURE_SCALE     share of the counts that is tried, 1 where it is not set

`tools/make_reliability.py` makes docs/reliability.md of the lines. A figure comes from a counter
that the test moves as it goes, never from what it meant to do.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
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
"""Whether what takes minutes for a single round is left out."""
not_in_a_slice = pytest.mark.skipif(SLICE, reason="too long for a slice")

_REPORTS = pytest.StashKey[list[pytest.TestReport]]()


def scaled(count: int, least: int = 1) -> int:
    """A count of the whole run at this run's scale."""
    return max(least, round(count * SCALE))


@dataclass
class Figures:
    """Counts of one test.

    Attributes:
        what: the row of the report.
        looked_for: kinds of fault that the test can see.
        tried: how many there were.
        faults: by kind.
        told: of each fault, what happened.
        outcomes: how they ended, such as read or refused.
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
        """Name the row of the report, and the kinds of fault (see `FAULTS`) that would be seen."""
        assert set(faults) <= set(FAULTS), faults
        self.what, self.looked_for = what, faults
        return self

    def ended(self, outcome: str = "", count: int = 1) -> None:
        """One more was tried, or some more."""
        self.tried += count
        if outcome:
            self.outcomes[outcome] += count

    def fault(self, kind: str, told: object) -> None:
        """There was a fault; the test goes on, and fails at its end."""
        assert kind in self.looked_for, kind
        self.faults[kind] += 1
        self.told.append(f"{kind}: {told}")

    @contextmanager
    def attempt(self, kind: str, told: object = "") -> Iterator[None]:
        """Try one more: an AssertionError in the block is a fault of this kind."""
        try:
            yield
        except AssertionError as error:
            self.fault(kind, f"{told} {error}".strip())
        self.ended()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Counts of this test: written down, and all faults raised, when it has ended."""
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
    with Path(path).open("ab", buffering=0) as file:  # one write, which no other cuts in two
        file.write(json.dumps(line).encode() + b"\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keep a test's outcome where its fixtures find it."""
    report = yield
    item.stash.setdefault(_REPORTS, []).append(report)
    return report
