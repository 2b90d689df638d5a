"""The examination of a machine: every part is examined, and what fails in doing so is a finding."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from dsd_trt.doctor import (
    cache,
    engines,
    gpu,
    kernel,
    memory,
    packages,
    processor,
    threads,
    variables,
)
from dsd_trt.doctor.bundle import Studied
from dsd_trt.doctor.child import ask
from dsd_trt.doctor.finding import STATES, Finding
from dsd_trt.engine import AUTO
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
        settings: meaning of the variables that set an option's default, by name.
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
        """Findings with a command to run, the worst first, each command once."""
        found = [] if self.failure is None else [self.failure]
        found += [it for section in self.sections for it in section.wrong]
        found.sort(key=lambda it: -STATES.index(it.state))
        return list({it.remedy: it for it in reversed(found) if it.remedy}.values())[::-1]

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
        "dsd_trt": packages.installed_version(NAME),
        "python": platform.python_version(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def examine(asked: Asked) -> Report:
    """Examine this machine. It never fails: what raises is a finding."""
    sections = list[Section]()

    def add(title: str, *examinations: Callable[[], Iterable[Finding]]) -> tuple[Finding, ...]:
        found = tuple(it for each in examinations for it in _guarded(title, each))
        sections.append(Section(title, found))
        return found

    studied = Studied(None, ())
    try:
        key = None if asked.key is None else str(asked.key)
        studied = Studied.from_plain(ask("dsd_trt.doctor.bundle:study_here", asked.bundle, key))
    except Exception as error:
        studied = Studied(None, (_unexamined("bundle", error),))
    add("packages", lambda: (packages.own_installation(),), packages.examine)
    of_engines = add("engines", lambda: engines.examine(studied.folder))
    named = {it.subject for it in of_engines}
    failure, engine = None, None
    if asked.engine in named or asked.engine == AUTO:
        failure = engines.why_not(asked.engine, of_engines, bundle=asked.bundle is not None)
        auto = engines.chosen(of_engines)
        engine = None if failure else auto if asked.engine == AUTO else asked.engine
    else:  # the examination itself failed
        failure = Finding(asked.engine, "fault", "it could not be examined", rebuild_command())
    add("GPU", gpu.examine)
    add("processor", processor.examine, threads.examine, kernel.examine)
    add("memory", functools.partial(memory.examine, studied.needs, engine))
    add("cache and disks", functools.partial(cache.examine, studied.needs))
    add("bundle", lambda: studied.findings)
    if studied.plans:
        add("plans", lambda: studied.plans)
    add("variables", functools.partial(variables.examine, asked.settings, asked.others))
    return Report(asked, tuple(sections), engine, failure, studied.error)


def _guarded(title: str, examination: Callable[[], Iterable[Finding]]) -> Iterable[Finding]:
    try:
        return list(examination())
    except (Exception, SystemExit) as error:
        return [_unexamined(title, error)]


def _unexamined(subject: str, error: BaseException) -> Finding:
    """What an examination that failed leaves: most likely, a file of this package is damaged."""
    why = f"{type(error).__name__}: {one_line(error)}"
    detail = f"this could not be examined: {why}"
    return Finding(subject, "warning", detail, rebuild_command())
