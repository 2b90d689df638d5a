"""Control groups for a test: real ones, of version 1 or 2, where the system lets one be made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_ENTER = 'echo $$ > "$0" && exec "$@"'


class NoGroupError(Exception):
    """This process may not make control groups, or this system has no such controller."""


@contextlib.contextmanager
def control_group(
    controller: str, first: Mapping[str, str], second: Mapping[str, str]
) -> Iterator[Path]:
    """A new group within the own one.

    Args:
        controller: name of the controller, such as "cpu".
        first: content of the group's files in version 1, by their names.
        second: the same for version 2.

    Raises:
        NoGroupError: control groups cannot be made here.
    """
    found = dict(
        line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text("ascii").splitlines()
    )
    old = controller in found
    top = _GROUPS / controller if old else _GROUPS
    own = found.get(controller, found.get("", "/")).lstrip("/")
    group = top / own / f"dsd-trt-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise NoGroupError(str(error)) from error
    try:
        for name, content in (first if old else second).items():
            try:
                (group / name).write_text(content)
            except OSError as error:
                raise NoGroupError(f"{group / name}: {error}") from error
        yield group
    finally:
        group.rmdir()


def within(group: Path, command: Sequence[str]) -> list[str]:
    """A command line that enters a group, and runs a command there."""
    return ["sh", "-c", _ENTER, str(group / "cgroup.procs"), *command]
