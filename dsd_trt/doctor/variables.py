"""Environment variables of the package that have no use, or no valid value."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping

from dsd_trt.doctor.finding import Finding
from dsd_trt.errors import InputError, counted
from dsd_trt.limits import Limit

_PREFIX = "DSD_TRT_"


def examine(settings: Mapping[str, str], others: Mapping[str, Limit | None]) -> Iterator[Finding]:
    """Every variable of the package that is set.

    Args:
        settings: why the value of each variable that sets an option's default is refused, by name
            with its prefix; "" where it is not.
        others: the other variables by name, with the limit that one sets.
    """
    from difflib import get_close_matches

    known = {*settings, *others}
    given = {it: os.environ[it] for it in sorted(os.environ) if it.startswith(_PREFIX)}
    faults = 0
    for name, value in given.items():
        facts = {"value": value}
        if name not in known:
            faults += 1
            close = get_close_matches(name, known, 1)
            meant = f"; is {close[0]} meant?" if close else ""
            taken = f"export {close[0]}={shlex.quote(value)} && " if close else ""
            yield Finding(
                name,
                "warning",
                f"no variable {name} is known, so it has no effect{meant}",
                f"{taken}unset {shlex.quote(name)}",
                facts,
            )
        elif why := settings.get(name) or _refusal(others.get(name)):
            faults += 1
            yield Finding(name, "fault", why, f"unset {name}", facts)
    if not faults:
        named = ", ".join(f"{name}={value}" for name, value in given.items())
        said = f"{counted(len(given), 'variable')} of the package: {named}" if given else "none set"
        yield Finding("variables", "ok", said, "", given)


def _refusal(limit: Limit | None) -> str:
    """Why the value of a limit's variable is refused; "" if it is not."""
    try:
        if limit is not None:
            limit.value()
    except InputError as error:
        return str(error)
    return ""
