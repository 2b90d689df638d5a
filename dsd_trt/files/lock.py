"""One writer at a time: a lock file that says who holds it, and that no kill leaves locked."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.files.unfinished import hidden_prefix

LOCK_NAME = ".lock"
"""Of the lock of a folder's content; that of a file or folder as a whole is `.NAME.lock`."""


@contextlib.contextmanager
def sole_writer(target: Path, *, inside: bool = False, wait: float = 0) -> Iterator[None]:
    """Be the only process that writes a file or folder.

    The lock is the system's and ends with the process, however that ends. A file system without
    locks holds nobody up.

    Args:
        target: what is written, for the message.
        inside: whether the lock lies in the folder `target`, whose content is written; otherwise it
            lies beside `target`, which is replaced as a whole.
        wait: how many seconds for another writer.

    Raises:
        InputError: another process writes there; says which, where and since when.
        OSError: no lock file can be made there.
    """
    path = target / LOCK_NAME if inside else target.with_name(hidden_prefix(target.name) + "lock")
    deadline = time.monotonic() + wait
    while (lock := _acquire(path)) is None:
        if time.monotonic() >= deadline:
            raise InputError(
                f"{target} is being written by {_holder(path)}. Wait until it has ended, or stop "
                "it, and run this again"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        try:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: whoever opened it sees that it is no longer there
        finally:
            os.close(lock)


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and be the only process that writes to it.

    Raises:
        InputError: another process does.
        OSError: as for `sole_writer`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder, inside=True):
        yield


def _acquire(path: Path) -> int | None:
    """The descriptor of the lock, or None where another process has it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _try(lock):
                os.close(lock)
                return None
            if _is_still(path, lock):
                os.ftruncate(lock, 0)
                os.pwrite(lock, _ourselves().encode(), 0)
                return lock
        except OSError:  # a full disk, or a share that knows no locks: the words are what is lost
            return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # the one before removed it, and a third may have made another


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
    import socket  # what only reads has no use for it, and starts sooner

    since = time.strftime("%Y-%m-%d %H:%M:%S")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    return f"process {os.getpid()} on {socket.gethostname()} ({command}) since {since}"


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        if text := path.read_text(encoding="utf-8", errors="replace").strip():
            return text
    return "another process"
