"""Folders written atomically, and files made durable."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.files.lock import sole_writer
from dsd_trt.files.unfinished import abandoned, remove, remove_abandoned, unfinished_name

_EXCHANGE, _HERE = 2, -100  # Linux's RENAME_EXCHANGE and AT_FDCWD
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


@contextlib.contextmanager
def whole_folder(
    path: Path, *, beside: Path | None = None, wait: float = 0, locked: bool = False
) -> Iterator[Path]:
    """A folder to fill, which replaces `path` when the block ends without an error.

    Until then, and after an error, a kill or a power cut, `path` is unchanged. Only one process at
    a time may write a path.

    Args:
        path: path of the folder; an existing one is replaced.
        beside: folder for the work, on the same disk as `path`. None is the parent of `path`, which
            is created if missing.
        wait: seconds to wait for another process that writes `path`.
        locked: whether the caller is the sole writer already.

    Yields:
        An empty folder to fill.

    Raises:
        InputError: another process is writing `path`.
        OSError: the folder cannot be written, or the disk is full.
    """
    around = beside or path.parent
    around.mkdir(parents=True, exist_ok=True)
    lock = contextlib.nullcontext() if locked else sole_writer(around / path.name, wait=wait)
    with lock:
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
            remove(unfinished)  # after an exchange, the previous folder


def require_writable(folder: Path, option: str = "--out") -> None:
    """Refuse, before any work is done, an output folder that cannot be created or written to.

    Args:
        folder: output folder, which need not exist.
        option: option that names it, for the message, or "as the last argument".

    Raises:
        InputError: a part of the path is a file, or the system does not allow writing there.
    """
    try:
        place = folder.resolve()
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file")
        probe = place / unfinished_name(folder.name or place.name)
        probe.mkdir()
        probe.rmdir()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write to the folder {str(folder)!r}: {reason}. Name another one "
            f"{f'with {option}' if option.startswith('-') else option}"
        ) from None


def require_run(folder: Path, plan: str) -> None:
    """Refuse an output folder with files that are not of a run, which could be replaced.

    Args:
        folder: output folder, which need not exist.
        plan: name of the file that a run writes first.

    Raises:
        InputError: the folder has something in it, hidden files apart, and no such file.
    """
    if not folder.is_dir() or (folder / plan).exists():
        return
    with contextlib.suppress(OSError):  # named once it is written to
        if found := sorted(it.name for it in folder.iterdir() if not it.name.startswith(".")):
            raise InputError(
                f"{folder} has other files, such as {found[0]!r}, and no {plan} of an "
                "earlier run: give a new folder, --out"
            )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, if the system supports that."""
    with contextlib.suppress(OSError):  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make everything in a folder survive a power cut.

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
    """Move a folder to `path`, swapping it with an existing one, which gets the name `new`."""
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
    """Restore a folder's name if a kill came between two renames."""
    for old in abandoned(_before(path)):
        if not path.exists():
            old.rename(path)
        else:
            remove(old)


def _before(path: Path) -> Path:
    """Name of a folder between two renames, by which it is found again."""
    return path.with_name(f"{path.name}.before")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False if the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # C library without renameat2
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
