"""Copies of large files: without taking disk where the file system can, and never by a hard link.

Other programs refuse a file of weights that has two names, and what is written to one of them is
written to both.
"""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.files.unfinished import remove_abandoned, unfinished_name

_FICLONE = 0x40049409  # of Linux's linux/fs.h


def clone_or_copy(source: Path, target: Path) -> int:
    """Give a file's content to a new file.

    Btrfs, XFS and others clone: both files lie on the same blocks until one of them is written to.

    Args:
        source: the file, or a link to it.
        target: is not there yet; what is there is never written through.

    Returns:
        How much disk it took, in bytes: 0 for a clone.

    Raises:
        OSError: `target` is there, or cannot be written.
    """
    with source.open("rb") as content, target.open("xb") as copy:
        try:
            if _clone(content.fileno(), copy.fileno()):
                return 0
            shutil.copyfileobj(content, copy, 2**22)
            return copy.tell()
        except BaseException:
            target.unlink()
            raise


def require_room(folder: Path, files: Iterable[Path], what: str, advice: str) -> None:
    """Refuse, before any work is done, a disk that cannot hold copies of files.

    Args:
        folder: where they are to be written; need not be there yet.
        files: what `clone_or_copy` will be given, each as often.
        what: is to be written there, for the message.
        advice: what to do about it.

    Raises:
        InputError: there is less room, and the file system does not clone.
    """
    sizes = [(path, path.stat().st_size) for path in files]
    needed = sum(size for _, size in sizes)
    nearest = nearest_folder(folder)
    if shutil.disk_usage(nearest).free >= needed:
        return
    if not _clones(max(sizes, key=lambda it: it[1])[0], nearest):
        require_free(nearest, needed, what, advice)


def require_free(folder: Path, needed: int, what: str, advice: str) -> None:
    """Refuse, before any work is done, a disk that has less room than will be needed.

    Args:
        folder: where it is needed; need not be there yet.
        needed: bytes.
        what: needs it, for the message.
        advice: what to do about it.

    Raises:
        InputError: there is less room.
    """
    nearest = nearest_folder(folder)
    if (free := shutil.disk_usage(nearest).free) < needed:
        raise InputError(
            f"{nearest} has room for {free / 1e9:.1f} GB, and {what} needs {needed / 1e9:.1f} GB. "
            f"{advice}"
        )


def nearest_folder(path: Path) -> Path:
    """The innermost folder around a path that exists; the path itself if it is one."""
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.is_dir())


def in_gigabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _clone(source: int, target: int) -> bool:
    """Whether a file could be made a clone of another, both given as descriptors."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        # What a full disk says of a clone it would say of a copy, too.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False  # another file system, or one that does not clone
    return True


def _clones(source: Path, folder: Path) -> bool:
    """Whether a folder's file system would clone a file."""
    remove_abandoned(folder / source.name)
    trial = folder / unfinished_name(source.name)
    try:
        with source.open("rb") as content, trial.open("xb") as copy:
            return _clone(content.fileno(), copy.fileno())
    except OSError:
        return False
    finally:
        trial.unlink(missing_ok=True)
