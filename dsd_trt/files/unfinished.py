"""Names of unfinished files, and removal of leftovers of killed processes.

A file or folder is written under a temporary name beside its target, and renamed at the end:
`.NAME.MACHINE.PROCESS.RANDOM.part`. The name identifies the writer, so that the next writer
recognises an abandoned file:

- From this machine: abandoned if no process with this number and start time runs. The start time
  distinguishes reused numbers and other boots.
- From another machine or container, on a shared disk: abandoned if nothing in it has changed for a
  week. Its process cannot be seen from here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from pathlib import Path

_SUFFIX = ".part"
_LONGEST = 160  # bytes kept of a name; file systems allow 255 including the additions
_WEEK = 7 * 24 * 3600
_OWNER = r"([0-9a-f]{8})\.(\d+)-([0-9a-z]+)\.[0-9a-f]{8}"
_OLDER = r"(?:\d+\.)?"  # separator used by earlier versions, between name and suffix
_GONE, _HIDDEN = "gone", "hidden"


def unfinished_name(name: str) -> str:
    """Temporary name of a file or folder, in the same folder, while this process writes it."""
    pid = os.getpid()
    return f"{hidden_prefix(name)}{_machine()}.{pid}-{_start(pid)}.{os.urandom(4).hex()}{_SUFFIX}"


def is_unfinished(path: Path) -> bool:
    """Whether a name belongs to a file or folder in progress, or abandoned by a killed writer."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def is_abandoned(path: Path) -> bool:
    """Whether the writer of an unfinished file or folder is gone."""
    owner = re.search(rf"\.{_OWNER}\.part\Z", path.name)
    if owner is not None and owner[1] == _machine():
        start = _start(int(owner[2]))
        if start == owner[3]:
            return False
        if start != _HIDDEN:
            return True
    return time.time() - _last_change(path) > _WEEK


def remove_abandoned(target: Path) -> None:
    """Remove leftovers of killed writers of a file or folder, as far as permitted."""
    for path in abandoned(target):
        remove(path)


def abandoned(target: Path) -> list[Path]:
    """Leftovers of killed writers of a file or folder."""
    name = re.compile(rf"{re.escape(hidden_prefix(target.name))}(?:{_OWNER}\.|{_OLDER})part")
    try:
        with os.scandir(target.parent) as found:
            paths = [target.parent / it.name for it in found if name.fullmatch(it.name)]
    except OSError:
        return []
    return [path for path in paths if is_abandoned(path)]


def remove(path: Path) -> None:
    """Remove a file or folder, as far as permitted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def hidden_prefix(name: str) -> str:
    """Prefix of temporary names beside a file or folder, shortened for long names."""
    encoded = os.fsencode(name)
    return f".{hashlib.sha256(encoded).hexdigest() if len(encoded) > _LONGEST else name}."


def _machine() -> str:
    """Identifier of this machine or container, within which process numbers are valid."""
    import socket  # imported late: readers do not need it, and start faster

    try:
        numbers = Path("/proc/self/ns/pid").stat().st_ino  # differs per container
    except OSError:
        numbers = 0
    return _digest(f"{socket.gethostname()} {numbers}")


def _start(pid: int) -> str:
    """Start time and boot of a process; or that it is gone, or cannot be inspected."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such process, another user's, or no /proc
        return _HIDDEN if _is_there(pid) else _GONE
    state, *fields = status.rpartition(")")[2].split()  # a command's name may contain anything
    return _GONE if state in "ZX" else _digest(f"{boot} {fields[18]}")


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # owned by another user
        return True
    return True


def _last_change(path: Path) -> float:
    """Time of the last change to a file, or to anything in a folder; now if unknown."""
    try:
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
        return max(it.lstat().st_mtime for it in (path, *inside))
    except OSError:
        return time.time()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
