"""Run a command on its own disk that is full or read-only, and again once there is room.

This file run as a script is the inner process, in a namespace that permits mounting a disk in
memory. It fills the disk, runs the command, makes room, and runs the command again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_UNSHARE = ["unshare", "--map-root-user", "--mount"]
_ROOM = 64 * 2**20  # least size of the disk beyond the files on it, in bytes


@dataclass(frozen=True)
class Ended:
    """Outcome of a command.

    Attributes:
        code: exit code of the command.
        said: standard error of the command.
        names: names of the files on the disk afterwards, hidden ones included.
    """

    code: int
    said: str
    names: tuple[str, ...]


def run_on_small_disk(
    command: Sequence[str | Path],
    folder: Path,
    free: int | None,
    *,
    again: bool = True,
    needed: int = 0,
) -> list[Ended]:
    """Run a command on a disk without room, and again on the same with room.

    Args:
        command: program with its arguments, started on the disk.
        folder: folder whose files are put on the disk first, and that receives them at the end.
        free: free space on the disk, in bytes; None makes the disk read-only.
        again: whether the command runs again once there is room.
        needed: number of bytes that the command writes in all; the second time three times as
            many are free, because a new file lies beside the one it replaces.

    Returns:
        The outcome of each run.
    """
    disk = folder.with_name(f"{folder.name}.disk")
    disk.mkdir()
    plan = {"command": list(map(str, command)), "folder": str(folder), "free": free, "again": again}
    plan["room"] = _ROOM + 3 * needed
    done = subprocess.run(
        [*_UNSHARE, sys.executable, __file__, disk, json.dumps(plan)],
        capture_output=True,
        text=True,
        timeout=1300,
    )
    assert not done.returncode, done.stderr
    disk.rmdir()
    return [Ended(**it) for it in json.loads(done.stdout)]


@pytest.fixture(scope="session")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip the test if mount namespaces are not available: no unshare, or not permitted."""
    folder = tmp_path_factory.mktemp("small-disk") / "folder"
    folder.mkdir()
    try:
        run_on_small_disk(["true"], folder, 0)
    except (OSError, AssertionError) as error:
        pytest.skip(f"no disk of its own: {error}")


def _mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)


def _run(command: Sequence[str], disk: Path) -> dict[str, object]:
    done = subprocess.run(
        command, cwd=disk, stdin=subprocess.DEVNULL, capture_output=True, timeout=600
    )
    names = [str(it.relative_to(disk)) for it in disk.rglob("*") if it.is_file()]
    said = done.stderr.decode(errors="replace")
    return {"code": done.returncode, "said": said, "names": sorted(names)}


def main(
    disk: Path, command: Sequence[str], folder: Path, free: int | None, again: bool, room: int
) -> None:
    """Inner process: mount, fill, run, make room, run again, and copy the files back."""
    size = sum(it.stat().st_size + 4096 for it in folder.rglob("*")) + room
    _mount(disk, f"size={size}")
    shutil.copytree(folder, disk, dirs_exist_ok=True)
    filler = disk / "filler"
    if free is None:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    else:
        with filler.open("wb") as file:
            there = os.statvfs(disk)
            os.posix_fallocate(file.fileno(), 0, max(1, there.f_bavail * there.f_frsize - free))
    ended = [_run(command, disk)]
    if free is None:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    filler.unlink(missing_ok=True)
    if again:
        ended.append(_run(command, disk))
    shutil.rmtree(folder)
    shutil.copytree(disk, folder)
    print(json.dumps(ended))


if __name__ == "__main__":
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: small_disk.py DISK SETTINGS, started by `on_small_disk`")
    given = json.loads(sys.argv[2])
    main(Path(sys.argv[1]), folder=Path(given.pop("folder")), **given)
