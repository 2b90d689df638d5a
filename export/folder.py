"""Write a bundle's folder completely or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsd_trt.bundle.snapshot import Snapshot
from dsd_trt.errors import InputError
from dsd_trt.files.disk import nearest_folder, require_free
from dsd_trt.files.folders import require_writable, whole_folder
from dsd_trt.files.unfinished import remove, remove_abandoned, unfinished_name


def check_replaceable(out: Path, force: bool) -> None:
    """Refuse, before any work is done, a folder that must not be written to.

    Args:
        out: folder to write, which need not exist.
        force: whether a folder that is not empty is accepted.

    Raises:
        InputError: `out` is a file, is not empty (unless `force`), contains the user's home or
            the current folder, or lies in the Hugging Face cache.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder: --out BUNDLE")
    require_writable(out)
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
    """Refuse, before any work is done, a disk that is too full for the export.

    Args:
        out: folder to write, which need not exist.
        size: upper bound of the export's size, in bytes.

    Raises:
        InputError: the disk has less free space than `size`.
    """
    advice = "Give a folder on another disk: --out BUNDLE"
    require_free(out.parent, size, "the export, at most,", advice)


@contextmanager
def staged(out: Path, *, force: bool = True) -> Iterator[tuple[Path, Path]]:
    """Fill a temporary folder; it becomes `out` when the block ends without an error.

    An existing `out` is replaced at that moment, see `check_replaceable`. After an error or an
    interrupt nothing is left behind. Leftovers of killed processes are removed.

    Args:
        out: final folder, which need not exist.
        force: whether `out` is replaced if it is not empty.

    Yields:
        The folder to fill, and an empty scratch folder that is removed at the end.

    Raises:
        InputError: the place is not writable, another process writes `out`, or the disk is full.
    """
    out = out.resolve()
    # Beside `out`, so that the final move is a rename; further up if its parents do not exist yet.
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
            check_replaceable(out, force)  # again: another process may have filled it since
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
