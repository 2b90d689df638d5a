"""Writing a folder whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsd_trt.bundle.snapshot import Snapshot
from dsd_trt.errors import InputError
from dsd_trt.files.disk import nearest_folder, require_free
from dsd_trt.files.folders import whole_folder
from dsd_trt.files.unfinished import remove, remove_abandoned, unfinished_name


def check_replaceable(out: Path, force: bool) -> None:
    """Refuse, before any work is done, a folder that must not be written to.

    Raises:
        InputError: a file, a folder that holds something (unless `force`), one that holds the
            user's home or the current folder, or one in the Hugging Face cache.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder: --out BUNDLE")
    if Snapshot.around(out):
        raise InputError(
            f"{out} lies in the Hugging Face cache; give a folder of yours: --out BUNDLE"
        )
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise InputError(
            f"{out} is not empty. Give another --out, or replace all it holds with --force"
        )
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (Path.home raises where there is none)
    if any(place.resolve().is_relative_to(out.resolve()) for place in (Path.cwd(), home)):
        raise InputError(f"{out} is not replaced: the current or the home folder lies in it")


def check_room(out: Path, size: int) -> None:
    """Refuse, before any work is done, a disk that cannot hold what is to be written.

    Args:
        out: the folder that is to be written.
        size: how much that will be at most, in bytes.

    Raises:
        InputError: there is less room.
    """
    advice = "Give a folder on another disk: --out BUNDLE"
    require_free(out.parent, size, "the export, at most,", advice)


@contextmanager
def staged(out: Path, *, force: bool = True) -> Iterator[tuple[Path, Path]]:
    """Fill a folder out of sight; it becomes `out` when the block ends without an error.

    An existing `out` is replaced in that moment, see `check_replaceable`. After an error or an
    interrupt nothing is left. What killed processes left is removed.

    Args:
        out: the folder.
        force: whether it may hold something.

    Yields:
        The folder to fill, and an empty folder for what is only needed meanwhile.

    Raises:
        InputError: nothing can be written there, another process writes it, or the disk is full.
    """
    out = out.resolve()
    # Beside `out`, so that moving is renaming; higher up where its parents do not exist yet.
    nearest = nearest_folder(out.parent)
    place = nearest / f"{out.name}.scratch"
    remove_abandoned(place)
    scratch = nearest / unfinished_name(place.name)
    try:
        try:
            scratch.mkdir()
        except OSError as error:
            raise InputError(f"cannot write to {nearest}: {error.strerror}") from error
        with whole_folder(out, beside=nearest) as folder:
            check_replaceable(out, force)  # again: another process may have filled it meanwhile
            yield folder, scratch
            check_replaceable(out, force)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"{nearest} is full; nothing was left there. Make room, or give a folder on another "
            "disk: --out BUNDLE"
        ) from error
    finally:
        remove(scratch)
