"""Folders that are written whole or not at all, and files that are in place durably."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dsd_trt.files.lock import sole_writer
from dsd_trt.files.unfinished import abandoned, remove, remove_abandoned, unfinished_name

_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


@contextlib.contextmanager
def whole_folder(path: Path, *, beside: Path | None = None, wait: float = 0) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` when the block ends without an error.

    Until that moment, and after an error, a kill or a power cut, `path` is what it was. One process
    at a time writes a path.

    Args:
        path: need not be there; what is there is replaced.
        beside: the folder to work in, on the disk of `path`; None is the one that `path` lies in,
            which is made.
        wait: seconds to wait for another process that writes `path`.

    Yields:
        An empty folder.

    Raises:
        InputError: another process writes `path`.
        OSError: nothing can be written there, or the disk is full.
    """
    around = beside or path.parent
    around.mkdir(parents=True, exist_ok=True)
    with sole_writer(around / path.name, wait=wait):
        _restore(path)
        remove_abandoned(around / path.name)
        unfinished = around / unfinished_name(path.name)
        try:
            unfinished.mkdir()
            yield unfinished
            sync_tree(unfinished)
            path.parent.mkdir(parents=True, exist_ok=True)
            _put(unfinished, path)
            sync_folder(path.parent)
        finally:
            remove(unfinished)  # after an exchange, the one before


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make all that lies in a folder survive a power cut.

    Raises:
        OSError: a file's content did not reach the disk.
    """
    for around, _, files in os.walk(folder):
        for name in files:
            if (path := Path(around, name)).is_symlink():
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(around))


def _put(new: Path, path: Path) -> None:
    """Put a folder where another is, or nothing; the one before has the name `new` afterwards."""
    if not path.exists():
        new.rename(path)
        return
    if _exchange(new, path):
        return
    old = path.with_name(unfinished_name(_before(path).name))
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    remove(old)


def _restore(path: Path) -> None:
    """Give a folder its name back where a kill came between two renames."""
    for old in abandoned(_before(path)):
        if not path.exists():
            old.rename(path)
        else:
            remove(old)


def _before(path: Path) -> Path:
    """What a folder is called between two renames, by which it is found again."""
    return path.with_name(f"{path.name}.before")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
