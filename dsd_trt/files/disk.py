"""Copies of large files: cloned if the file system can, and never hard links.

A hard link is no copy: writing to one name changes the other, and other programs refuse weights
with two names.
"""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.files.unfinished import remove_abandoned, unfinished_name

_FICLONE = 0x40049409  # from linux/fs.h


def clone_or_copy(source: Path, target: Path) -> int:
    """Copy a file's content to a new file.

    Btrfs, XFS and others clone: both files share their blocks until one is written to.

    Args:
        source: path of the file, or of a link to it.
        target: path of the new file; an existing file is never overwritten.

    Returns:
        Disk space used in bytes: 0 for a clone.

    Raises:
        OSError: `target` exists, or cannot be written.
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
    """Refuse, before any work, a disk without space for copies of files.

    Args:
        folder: folder to write to; need not exist yet.
        files: files that `clone_or_copy` will copy; repeat a file per copy.
        what: description of the copies, for the message.
        advice: remedy, for the message.

    Raises:
        InputError: there is too little space, and the file system does not clone.
    """
    sizes = [(path, path.stat().st_size) for path in files]
    needed = sum(size for _, size in sizes)
    nearest = nearest_folder(folder)
    if shutil.disk_usage(nearest).free >= needed:
        return
    if not _clones(max(sizes, key=lambda it: it[1])[0], nearest):
        require_free(nearest, needed, what, advice)


def _size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def require_free(folder: Path, needed: int, what: str, advice: str) -> None:
    """Refuse, before any work, a disk with too little free space.

    Args:
        folder: folder to write to; need not exist yet.
        needed: required space in bytes.
        what: description of what needs the space, for the message.
        advice: remedy, for the message.

    Raises:
        InputError: there is too little space on the disk.
    """
    nearest = nearest_folder(folder)
    if (free := shutil.disk_usage(nearest).free) < needed:
        raise InputError(
            f"{nearest} has room for {_size(free)}, and {what} needs {_size(needed)}. {advice}"
        )


def nearest_folder(path: Path) -> Path:
    """The innermost existing folder of a path, which may be the path itself."""
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.is_dir())


def in_gigabytes(size: int) -> str:
    """A size in gigabytes, for messages."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _clone(source: int, target: int) -> bool:
    """Clone a file, both given as descriptors; False if it is not possible."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        # A disk too full to clone is too full to copy.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False  # across file systems, or without support for clones
    return True


def _clones(source: Path, folder: Path) -> bool:
    """Whether a folder's file system can clone files."""
    remove_abandoned(folder / source.name)
    trial = folder / unfinished_name(source.name)
    try:
        with source.open("rb") as content, trial.open("xb") as copy:
            return _clone(content.fileno(), copy.fileno())
    except OSError:
        return False
    finally:
        trial.unlink(missing_ok=True)
