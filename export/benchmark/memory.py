"""Peak memory of a process by kind: its own, and pages of files that the system can take back."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY = 0.01  # seconds between two looks; a load that holds its peak shorter is cheap


@dataclass(frozen=True)
class PeakMemory:
    """Peaks of one process, each at its own moment.

    A container's limit has to hold the private memory. Mapped pages of files count in it only while
    nothing else needs the room, and processes that map the same file share them.

    Attributes:
        private_mib: private memory (RssAnon), in MiB.
        mapped_mib: mapped pages of files (RssFile), in MiB.
    """

    private_mib: float
    mapped_mib: float


def run_watched(
    command: Sequence[str], environment: Mapping[str, str]
) -> tuple[subprocess.CompletedProcess[str], PeakMemory | None]:
    """Run a command and look at its memory from outside, where it cannot delay a look.

    Args:
        command: program to run, with its arguments.
        environment: environment variables of the process.

    Returns:
        The finished process with its output as text; and its peak memory without that of its own
        children, None where the system does not report it.
    """
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        ended = threading.Event()
        looks: list[PeakMemory] = []
        watcher = threading.Thread(target=_watch, args=(process.pid, ended, looks), daemon=True)
        watcher.start()
        try:
            output, complaints = process.communicate()
        except BaseException:
            process.kill()
            raise
        finally:
            ended.set()
            watcher.join()
    found = subprocess.CompletedProcess(command, process.returncode, output, complaints)
    return found, looks[-1] if looks else None


def _watch(pid: int, ended: threading.Event, looks: list[PeakMemory]) -> None:
    """Keep the peaks so far in `looks`."""
    while not ended.wait(_EVERY):
        if (now := memory_of(pid)) is None:
            return
        before = looks[0] if looks else now
        looks[:] = [
            PeakMemory(
                max(before.private_mib, now.private_mib), max(before.mapped_mib, now.mapped_mib)
            )
        ]


def memory_of(pid: int | str = "self") -> PeakMemory | None:
    """Memory of a process now; None if it has ended, or the system does not report it.

    Args:
        pid: process id, or "self".
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", errors="replace").splitlines()
    except OSError:  # no such process, or no Linux
        return None
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    try:
        private, mapped = (int(found[name].split()[0]) / 2**10 for name in ("RssAnon", "RssFile"))
    except (KeyError, ValueError, IndexError):  # a process that has ended, or an old kernel
        return None
    return PeakMemory(private, mapped)
