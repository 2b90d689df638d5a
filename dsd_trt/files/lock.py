"""One writer at a time: a lock file that names its holder and never outlives it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.files.position import write_at
from dsd_trt.files.unfinished import hidden_prefix

LOCK_NAME = ".lock"
"""Name of the lock for a folder's content; the lock of a whole file or folder is `.NAME.lock`."""

NAMED_WITHIN = 1.0
"""Seconds that suffice for the holder of a new lock to write its name, or to end."""


@contextlib.contextmanager
def sole_writer(target: Path, *, inside: bool = False, wait: float = 0) -> Iterator[None]:
    """Be the only process that writes a file or folder.

    The lock belongs to the operating system and ends with the process in any case. On a file system
    without locks, nothing is locked.

    Args:
        target: path that is written, for the message.
        inside: whether the lock lies in the folder `target`, whose content is written. Otherwise it
            lies beside `target`, which is replaced as a whole.
        wait: seconds to wait for another writer.

    Raises:
        InputError: another process writes there; the message says which one, where and since when.
        OSError: the lock file cannot be created.
    """
    path = target / LOCK_NAME if inside else target.with_name(hidden_prefix(target.name) + "lock")
    began = time.monotonic()
    while (lock := _acquire(path)) is None:
        waited, holder = time.monotonic() - began, _holder(path)
        # A lock is taken before its name is written, and unlinked before it is released.
        if waited >= wait and (holder or waited >= NAMED_WITHIN):
            raise InputError(
                f"{target} is being written by {holder or 'another process'}. Wait until it has "
                "ended, or stop it, and run this again"
            )
        time.sleep(0.1 if holder else 0.01)
    try:
        yield
    finally:
        try:
            with contextlib.suppress(OSError):
                path.unlink()  # removed while held: a process that has it open notices the removal
        finally:
            os.close(lock)


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Create a folder, and be the only process that writes to it.

    Raises:
        InputError: another process writes to the folder.
        OSError: the lock file cannot be created, as for `sole_writer`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder, inside=True):
        yield


def _acquire(path: Path) -> int | None:
    """Descriptor of the lock; None if another process holds it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _try(lock):
                os.close(lock)
                return None
            if _is_still(path, lock):
                os.ftruncate(lock, 0)
                write_at(lock, _ourselves().encode(), 0)
                return lock
        except OSError:  # full disk, or a share without locks: only the holder's name is lost
            return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # removed by its last holder; a third process may have made another


def _try(lock: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _ourselves() -> str:
    import socket  # imported late: readers do not need it, and start faster

    since = time.strftime("%Y-%m-%d %H:%M:%S")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    return f"process {os.getpid()} on {socket.gethostname()} ({command}) since {since}"


def _holder(path: Path) -> str:
    """What a lock's holder wrote of itself; empty while it has written nothing."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""
