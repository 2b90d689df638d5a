"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dsd_trt.errors import DsdError
from dsd_trt.folders import sync_folder
from dsd_trt.unfinished import remove_abandoned, unfinished_name


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends without an error.

    Until that moment, and after an error, a kill or a power cut, `path` is what it was; after it,
    a power cut does not undo it. A symbolic link stays one. Pipes, terminals and `/dev/null` are
    written to, never replaced. What killed processes left of `path` is removed.

    Raises:
        DsdError: the disk is full, or the like; names `path`.
    """
    try:
        if is_device(path):
            with path.open("wb") as file:
                yield file
            return
        target = followed(path)
        remove_abandoned(target)
        unfinished = target.with_name(unfinished_name(target.name))
        try:
            with unfinished.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the name without the content
            unfinished.replace(target)
            sync_folder(target.parent)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except BrokenPipeError:  # the reader has seen enough: no error of ours
        raise
    except OSError as error:
        raise DsdError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def write_whole(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file; text as UTF-8, its line ends as they are.

    Raises:
        DsdError: as for `whole`.
    """
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def whole_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file that lines are appended to, none where there is no file.

    A last line that a kill cut short is cut off, so that the next one has a line of its own.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1]
    if lines != content:
        write_whole(path, lines)
    return lines.decode().split("\n")[:-1]


def followed(path: Path) -> Path:
    """Where a file lies, symbolic links followed.

    Raises:
        OSError: links lead round in a circle, or the name is too long.
    """
    try:
        return path.resolve()
    except RuntimeError:  # what Python says of a circle before 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def is_device(path: Path) -> bool:
    """Whether something else than a file or a folder is there, such as a pipe or a terminal."""
    return path.exists() and not path.is_file() and not path.is_dir()
