"""Writing a folder whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsd_trt.disk import nearest_folder, require_free
from dsd_trt.errors import InputError
from dsd_trt.snapshot import Snapshot


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
    if any(place.resolve().is_relative_to(out.resolve()) for place in (Path.cwd(), Path.home())):
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
def staged(out: Path) -> Iterator[tuple[Path, Path]]:
    """Fill a folder out of sight; it becomes `out` when the block ends without an error.

    An existing `out` is replaced in that moment, see `check_replaceable`. After an error or an
    interrupt nothing is left.

    Yields:
        The folder to fill, and an empty folder for what is only needed meanwhile.

    Raises:
        InputError: nothing can be written there, or the disk is full.
    """
    out = out.resolve()
    # Beside `out`, so that moving is renaming; higher up where its parents do not exist yet.
    nearest = nearest_folder(out.parent)
    stage = nearest / f".{out.name}.{os.getpid()}.part"
    folder, scratch = stage / "new", stage / "scratch"
    try:
        try:
            stage.mkdir()
        except OSError as error:
            raise InputError(f"cannot write to {nearest}: {error.strerror}") from error
        folder.mkdir()
        scratch.mkdir()
        yield folder, scratch
        out.parent.mkdir(parents=True, exist_ok=True)
        _swap(folder, out, stage / "old")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"{nearest} is full; nothing was left there. Make room, or give a folder on another "
            "disk: --out BUNDLE"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _swap(new: Path, out: Path, old: Path) -> None:
    """Put `new` where `out` is; whatever happens, `out` is one of the two."""
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
