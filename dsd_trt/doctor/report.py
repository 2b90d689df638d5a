"""The examination of a machine: every part is examined, and what fails in doing so is a finding."""

from __future__ import annotations

import errno
import importlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from dsd_trt.doctor.child import ChildError, ask
from dsd_trt.doctor.finding import STATES, Finding
from dsd_trt.doctor.studied import Studied
from dsd_trt.errors import one_line
from dsd_trt.installation import NAME, rebuild_command
from dsd_trt.limits import Limit

SCHEMA_VERSION = 1
"""Version of the JSON; it grows when a field is removed or changes its meaning."""


@dataclass(frozen=True)
class Asked:
    """What a user wants to know.

    Attributes:
        engine: name of the engine to score with, or "auto".
        bundle: name of the bundle to score with; None is the demonstration's.
        key: public key that must have signed the bundle; None requires no signature.
        settings: why the value of each variable that sets an option's default is refused, by name;
            "" where it is not.
        others: the package's other variables by name, with the limit that one sets.
    """

    engine: str
    bundle: str | None
    key: Path | None
    settings: Mapping[str, str]
    others: Mapping[str, Limit | None]


@dataclass(frozen=True)
class Section:
    """Findings about one part of a machine, under a title such as "engines"."""

    title: str
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> list[Finding]:
        """Findings that something works badly, or not at all."""
        return [it for it in self.findings if it.state in STATES[2:]]


@dataclass(frozen=True)
class Report:
    """The result of an examination.

    Attributes:
        asked: question that it answers.
        sections: findings by part of the machine.
        engine: name of the engine that would score; None if none can.
        failure: why the engine that was asked for cannot work; None if it can.
        bundle_error: message with which a command would refuse the bundle; "" if it would not.
    """

    asked: Asked
    sections: tuple[Section, ...]
    engine: str | None
    failure: Finding | None
    bundle_error: str

    @property
    def exit_code(self) -> int:
        """0, 4 if the engine cannot work, 2 if the bundle cannot be used."""
        if self.failure is not None:
            return 4
        return 2 if self.bundle_error else 0

    @property
    def next_steps(self) -> list[Finding]:
        """Findings with a command to run, the worst first, each command once.

        The command for the engine that was asked for comes before all others. Of findings with one
        command, the first names the cause; others follow from it.
        """
        wrong = [it for section in self.sections for it in section.wrong if it.remedy]
        wrong.sort(key=lambda it: -STATES.index(it.state))
        steps: dict[str, Finding] = {}
        for it in wrong:
            steps.setdefault(it.remedy, it)
        if self.failure is not None and self.failure.remedy:
            first = steps.pop(self.failure.remedy, self.failure)
            return [first, *steps.values()]
        return list(steps.values())

    def to_plain(self) -> dict[str, Any]:
        """The report as values for JSON; docs/doctor.md describes them."""
        return {
            "schema_version": SCHEMA_VERSION,
            "machine": describe(),
            "date": date.today().isoformat(),
            "asked": {"engine": self.asked.engine, "bundle": self.asked.bundle},
            "engine": self.engine,
            "exit_code": self.exit_code,
            "findings": [
                {"section": section.title, **it.to_plain()}
                for section in self.sections
                for it in section.findings
            ],
            "next": [
                {"subject": it.subject, "cause": it.detail, "command": it.remedy}
                for it in self.next_steps
            ],
        }


def describe() -> dict[str, str | None]:
    """Versions of this package and of Python, system and architecture."""
    return {
        "dsd_trt": _version(),
        "python": platform.python_version(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def examine(asked: Asked) -> Report:
    """Examine this machine. It never fails: what raises is a finding."""
    sections = list[Section]()

    def add(title: str, *modules: str, given: tuple[Any, ...] = ()) -> None:
        found = [it for module in modules for it in _guarded(title, module, *given)]
        sections.append(Section(title, tuple(found)))

    try:
        studied = _studied(asked)
    except ChildError as error:
        return _without_processes(asked, error)
    add("packages", "packages")
    of_packages, of_gpu = sections[-1].findings, tuple(_guarded("GPU", "gpu"))
    add("engines", "engines", given=(studied.folder, of_packages, of_gpu))
    failure, engine = _verdict(asked, sections[-1].findings)
    sections.append(Section("GPU", of_gpu))
    kernel = _guarded("kernel", "kernel", of_packages)
    add("processor", "processor", "threads")
    sections[-1] = Section("processor", (*sections[-1].findings, *kernel))
    add("memory", "memory", given=(studied.needs, engine))
    add("cache and disks", "cache", given=(studied.needs,))
    sections.append(Section("bundle", studied.findings))
    if studied.plans:
        sections.append(Section("plans", studied.plans))
    add("variables", "variables", given=(asked.settings, asked.others))
    return Report(asked, tuple(sections), engine, failure, studied.error)


def _guarded(title: str, module: str, *arguments: Any) -> list[Finding]:
    """Findings of a module of this folder, imported here: its file may be damaged."""
    try:
        return list(importlib.import_module(f"dsd_trt.doctor.{module}").examine(*arguments))
    except (Exception, SystemExit) as error:
        return [_unexamined(title, error)]


def _without_processes(asked: Asked, error: ChildError) -> Report:
    """What is left to say where no process can be started, in which anything could be examined."""
    from dsd_trt.doctor.control_group import granted
    from dsd_trt.doctor.threads import MORE_TASKS

    number = isinstance(error.__cause__, OSError) and error.__cause__.errno
    remedy = {
        errno.EAGAIN: "ulimit -u unlimited" if granted().tasks is None else MORE_TASKS,
        errno.EMFILE: "ulimit -n 1024",
        errno.ENOMEM: "ulimit -v unlimited",
    }.get(number or 0, f"chmod a+rx {shlex.quote(sys.executable)}")
    failure = Finding("processes", "fault", str(error), remedy)
    found = [*_guarded("processor", "processor"), *_guarded("threads", "threads")]
    sections = (Section("processes", (failure,)), Section("processor", tuple(found)))
    return Report(asked, sections, None, failure, "")


def _studied(asked: Asked) -> Studied:
    """The bundle, studied in a process of its own.

    Raises:
        ChildError: no process can be started.
    """
    key = None if asked.key is None else str(asked.key)
    try:
        return Studied.from_plain(ask("dsd_trt.doctor.bundle:study_here", asked.bundle, key))
    except Exception as error:
        if isinstance(error, ChildError) and not error.started:
            raise
        return Studied(None, (_unexamined("bundle", error),))


def _verdict(asked: Asked, found: Sequence[Finding]) -> tuple[Finding | None, str | None]:
    """Why the engine that is asked for cannot work, and the engine that would score."""
    try:
        from dsd_trt.doctor.engines import chosen, why_not

        failure = why_not(asked.engine, found, bundle=asked.bundle is not None)
        return failure, None if failure else chosen(asked.engine, found)
    except Exception as error:
        return _unexamined(asked.engine, error), None


def _version() -> str | None:
    """Version of this package; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # takes 0.03 s

    try:
        return version(NAME)
    except PackageNotFoundError:
        return None


def _unexamined(subject: str, error: BaseException) -> Finding:
    """What an examination that failed leaves: most likely, a file of this package is damaged."""
    why = f"{type(error).__name__}: {one_line(error)}"
    detail = f"this could not be examined: {why}"
    return Finding(subject, "warning", detail, rebuild_command())
