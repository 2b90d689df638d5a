"""A report of a GPU check that grows step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dsd_trt.engines.gpu_check.figures import Peer, Run
from dsd_trt.engines.gpu_check.report import GpuReport
from dsd_trt.errors import DsdError


class Recorder:
    """A report that grows: every step is announced before, and saved after.

    Args:
        report: what is known before the first step.
        stage: callback `(name)`, called when a step begins.
        save: callback that writes the report.
    """

    def __init__(
        self,
        report: GpuReport,
        stage: Callable[[str], None] = lambda name: None,
        save: Callable[[GpuReport], None] = lambda report: None,
    ) -> None:
        self.report: GpuReport = report
        self.stage: Callable[[str], None] = stage
        self._save = save
        save(report)

    def note(self, **fields: Any) -> None:
        """Replace fields of the report, and save it."""
        self.report = replace(self.report, **fields)
        self._save(self.report)

    def note_run(self, name: str, **fields: Any) -> None:
        """Replace fields of one run of the engine, and save the report."""
        run = replace(self.report.runs.get(name, Run()), **fields)
        self.note(runs={**self.report.runs, name: run})

    def note_peer(self, name: str, **fields: Any) -> None:
        """Replace fields of one contender in PyTorch, and save the report."""
        peer = replace(self.report.peers.get(name, Peer()), **fields)
        self.note(peers={**self.report.peers, name: peer})

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A block whose error of the engine becomes a line of the report."""
        try:
            yield
        except DsdError as error:
            self.note(failures={**self.report.failures, what: str(error)})
