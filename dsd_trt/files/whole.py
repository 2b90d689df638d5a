"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from dsd_trt.errors import DsdError, InputError
from dsd_trt.files.folders import sync_folder
from dsd_trt.files.unfinished import remove_abandoned, unfinished_name

logger = logging.getLogger(__name__)

T = TypeVar("T")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends without an error.

    Until that moment, and after an error, a kill or a power cut, `path` is what it was; after it,
    a power cut does not undo it. A symbolic link stays one. Pipes, terminals and `/dev/null` are
    written to, never replaced. What killed processes left of `path` is removed.

    Raises:
        DsdError: the disk is full, or the like; names `path`.
    """
    places = {path.parent}
    try:
        if is_device(path):
            with path.open("wb") as file:
                yield file
            return
        target = followed(path)
        places.add(target.parent)
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
        if error.filename is not None and Path(os.fsdecode(error.filename)).parent not in places:
            raise  # of what is read in the block
        raise DsdError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def write_whole(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file; text as UTF-8, its line ends as they are.

    Raises:
        DsdError: as for `whole`.
    """
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def append(path: Path, lines: str, *, durable: bool = True) -> None:
    """Append whole lines to a file, all of them or none.

    Args:
        path: of the file.
        lines: with their ends.
        durable: whether they are to survive a power cut.

    Raises:
        DsdError: the disk is full, or the like; names `path`, which is as it was.
    """
    content, written = lines.encode(), 0
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            end = os.fstat(file).st_size
            try:
                while written < len(content):
                    written += os.write(file, content[written:])
                if durable:
                    os.fsync(file)
                    if not end:
                        sync_folder(path.parent)
            except BaseException:
                os.ftruncate(file, end)
                raise
        finally:
            os.close(file)
    except OSError as error:
        raise DsdError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def whole_lines(path: Path, read: Callable[[str], T]) -> list[T]:
    """What the lines of a UTF-8 file say that lines are appended to; nothing where it is not there.

    A last line that a kill cut short is cut off, so that the next one has a line of its own. So is
    what follows a damaged line, that line included, with a logged warning.

    Args:
        path: of the file.
        read: makes something of a line, or raises a ValueError.

    Raises:
        InputError: the first line is damaged: it is another file.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    if b"\n" not in content and content and not content.startswith(b"{"):
        raise InputError(f"{path} holds something else than lines: remove it to start again")
    found: list[T] = []
    end = 0
    for line in content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]:
        try:
            found.append(read(line.decode()))
        except ValueError as error:  # UnicodeDecodeError is one
            if not found:
                raise InputError(
                    f"{path} is damaged or holds something else ({error}): remove it to start again"
                ) from None
            damaged = len(found) + 1
            logger.warning("%s, line %d is damaged: from there it is done again", path, damaged)
            break
        end += len(line) + 1
    if end < len(content):
        write_whole(path, content[:end])
    return found


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
