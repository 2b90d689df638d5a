"""Python packages that dsd-trt needs itself, and versions that are too old for it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_trt.doctor.child import ChildError, ask
from dsd_trt.doctor.finding import Finding
from dsd_trt.errors import cut, one_line, with_causes
from dsd_trt.installation import (
    NAME,
    PACKAGE,
    rebuild_command,
    reinstall_command,
    upgrade_command,
)

# What scoring imports: modules by their distributions' names.
BASE = {
    "numpy": "numpy",
    "pillow": "PIL.Image",
    "tokenizers": "tokenizers",
    "click": "click",
    "rich": "rich.table",
}
_SEARCHED = "LD_LIBRARY_PATH"
_LONGEST = 200  # characters of an import's message
_ENGINES = ("cpu", "openvino", "cuda", "gpu", "rtx")  # extras


@dataclass(frozen=True)
class Requirement:
    """A package that dsd-trt requires, from its metadata.

    Attributes:
        name: name of the distribution, in lower case with hyphens.
        least: oldest version that may be installed, such as "1.26"; "" for any.
        extra: extra of an engine that requires it; "" for every installation.
    """

    name: str
    least: str
    extra: str


def examine() -> Iterator[Finding]:
    """Python, this package, and each package that it imports to score."""
    yield _own()
    yield _python()
    old = dict(_too_old())
    try:
        together = ask("dsd_trt.doctor.packages:import_base_here")
    except ChildError:  # one of them ends the process: each in one of its own tells which
        together = {}
    for name in BASE:
        yield old.get(name) or _imported(name, together.get(name))
    yield from (it for name, it in old.items() if name not in BASE)


def broken_base(packages: Iterable[Finding]) -> Finding | None:
    """The first package that every engine needs and that does not work; None if all do.

    Args:
        packages: findings about packages, as `examine` returns them.
    """
    return next((it for it in packages if it.subject in BASE and it.state == "fault"), None)


def import_base_here() -> dict[str, dict[str, Any]]:
    """Import every module of `BASE` in this process; results as of `import_here`, by name."""
    return {name: import_here(name) for name in BASE}


def import_here(name: str) -> dict[str, Any]:
    """Import a module in this process: its version, its file, and why it cannot be imported.

    Args:
        name: name of the distribution that has it, a key of `BASE`.
    """
    module = BASE[name]
    facts = {"version": installed_version(name), "file": _file(module.partition(".")[0]), "why": ""}
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a broken package may raise anything
        *_, cause = with_causes(error)  # numpy's own message is a page of advice
        return facts | {"why": f"{type(cause).__name__}: {cut(one_line(cause, 1000), _LONGEST)}"}
    return facts


def installed_version(name: str) -> str | None:
    """Version of an installed distribution; None if there is none."""
    from importlib.metadata import PackageNotFoundError, version  # takes 0.03 s

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a release without zeros at its end, to compare: "10.8.0rc1" is (10, 8)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    parts = list(map(int, found[0].split("."))) if found else []
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def _own() -> Finding:
    """This package: its version and folder, or that it has no metadata."""
    version = installed_version(NAME)
    facts = {"version": version, "folder": str(PACKAGE)}
    if version is None:
        detail = f"{PACKAGE} is run without an installation: versions are not checked"
        return Finding(NAME, "note", detail, rebuild_command(), facts)
    return Finding(NAME, "ok", f"{version}, {PACKAGE}", "", facts)


def _python() -> Finding:
    version = platform.python_version()
    facts = {"python": version, "executable": sys.executable, "system": platform.platform()}
    return Finding("python", "ok", f"{version}, {sys.executable}", "", facts)


def _imported(name: str, found: dict[str, Any] | None) -> Finding:
    """A package, from what `import_here` returned; None if that is still to be asked for."""
    try:
        found = found or ask("dsd_trt.doctor.packages:import_here", name)
    except ChildError as error:
        file = _file(BASE[name].partition(".")[0])
        found = {"version": installed_version(name), "file": file, "why": str(error)}
    why = found.pop("why")
    version = found["version"]
    if not why:
        return Finding(name, "ok", version or f"{found['file']}, without metadata", "", found)
    if version is None and found["file"] is None:
        return Finding(name, "fault", "not installed", reinstall_command(name), found)
    where = f" from {found['file']}" if found["file"] else ""
    pinned = f"{name}=={version}" if version else name
    detail = f"{pinned} does not load{where}: {why}"
    if (hindrance := hindrance_of(name, BASE[name].partition(".")[0], why)) is not None:
        return Finding(name, "fault", f"{detail}; {hindrance[0]}", hindrance[1], found)
    return Finding(name, "fault", detail, reinstall_command(pinned), found)


def hindrance_of(distribution: str, module: str, why: str) -> tuple[str, str] | None:
    """Why a package that is whole does not load, and the command that mends it; None if unknown.

    Args:
        distribution: name that installers know, such as "openvino".
        module: top module that it is imported by.
        why: message with which it does not load.
    """
    searched = os.environ.get(_SEARCHED, "")
    if any(f"{it.rstrip('/')}/" in why for it in searched.split(":") if it.rstrip("/")):
        return f"{_SEARCHED}={searched} leads to that library", f"unset {_SEARCHED}"
    if (file := _file(module)) is None:
        return None
    if _shadows(distribution, file):
        moved = str(Path(file).parent if Path(file).name == "__init__.py" else file)
        aside = shlex.join(["mv", moved, f"{moved}.aside"])
        return f"{moved} is in the way of the package", aside
    place = Path(file).parent
    if hasattr(os, "ST_NOEXEC") and os.statvfs(place).f_flag & os.ST_NOEXEC:
        while not place.is_mount():
            place = place.parent
        remount = shlex.join(["mount", "-o", "remount,exec", str(place)])
        return f"its disk, {place}, is mounted noexec", remount
    return None


def _shadows(name: str, file: str) -> bool:
    """Whether a module is found in another folder than its distribution is installed in."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        home = Path(str(distribution(name).locate_file("")))
    except PackageNotFoundError:
        return "-packages" not in file
    return not Path(file).is_relative_to(home)


def _file(module: str) -> str | None:
    """File or folder that an import of a module takes; None if there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)


def _too_old() -> Iterator[tuple[str, Finding]]:
    """Installed packages below the oldest version that may be, by name."""
    for it in _requirements():
        version = installed_version(it.name)
        if version is None or not it.least or numbers(version) >= numbers(it.least):
            continue
        by = f"the extra {it.extra}" if it.extra else "dsd-trt"
        detail = f"{version} is too old: {by} needs {it.least} or later"
        remedy = upgrade_command(f"{it.name}>={it.least}")
        yield it.name, Finding(it.name, "fault", detail, remedy, {"version": version})


def _requirements() -> Iterator[Requirement]:
    """What this package and its extras of engines require; nothing without its metadata."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(NAME) or []
    except PackageNotFoundError:  # a clone that is run without an installation
        return
    for line in lines:
        requirement, _, marker = line.partition(";")
        found = re.match(r"\s*([\w.-]+)(?:\[.*?\])?.*?(?:>=\s*([\w.]+))?\s*\Z", requirement.strip())
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if found is None or (extra is not None and extra[1] not in _ENGINES):
            continue
        name = re.sub(r"[-_.]+", "-", found[1]).lower()
        yield Requirement(name, found[2] or "", extra[1] if extra else "")
