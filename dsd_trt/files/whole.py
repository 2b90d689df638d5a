"""Files written atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from dsd_trt.errors import DsdError, InputError
from dsd_trt.files.folders import sync_folder
from dsd_trt.files.position import BINARY
from dsd_trt.files.unfinished import remove_abandoned, unfinished_name
from dsd_trt.log import get_logger
from dsd_trt.spans import span

logger = get_logger(__name__)

T = TypeVar("T")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` when the block ends without an error.

    Until then, and after an error, a kill or a power cut, `path` is unchanged. Afterwards, the new
    content survives a power cut.

    Symbolic links stay links. Pipes, terminals and `/dev/null` are written to, never replaced.
    Leftovers of killed processes are removed.

    Raises:
        DsdError: the disk is full or cannot be written to; the message names `path`.
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
                with span("write", file=path.name):
                    file.flush()
                    os.fsync(file.fileno())  # else a power cut could leave the name alone
            unfinished.replace(target)
            sync_folder(target.parent)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except BrokenPipeError:  # the reader closed the pipe: not an error
        raise
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)).parent not in places:
            raise  # errors of reading inside the block
        raise DsdError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def write_whole(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file atomically; text as UTF-8, with its line ends unchanged.

    Raises:
        DsdError: the file cannot be written, as for `whole`.
    """
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def append(path: Path, lines: str, *, durable: bool = True) -> None:
    """Append whole lines to a file: all of them or none.

    Args:
        path: file to extend; it is created if it does not exist.
        lines: lines with their line ends.
        durable: whether the lines must survive a power cut.

    Raises:
        DsdError: the disk is full or cannot be written to; the message names `path`, which is
            unchanged.
    """
    content, written = lines.encode(), 0
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | BINARY, 0o666)
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
    """Parse the lines of a UTF-8 file that is appended to; empty if there is no file.

    A truncated last line, left by a kill, is cut off, so that the next line starts clean. So is
    everything from a damaged line on, with a logged warning.

    Args:
        path: file of this package, one object per line.
        read: parser of one line; raises ValueError for a damaged one.

    Raises:
        InputError: the first line is damaged, so this is some other file.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    if b"\n" not in content and content and not content.startswith(b"{"):
        raise InputError(
            f"{path} is not a file of this run (expected JSON lines): delete it to start again"
        )
    found: list[T] = []
    end = 0
    for line in content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]:
        try:
            found.append(read(line.decode()))
        except ValueError as error:  # includes UnicodeDecodeError
            if not found:
                raise InputError(
                    f"{path} is damaged or not a file of this run ({error}): delete it to start "
                    "again"
                ) from None
            damaged = len(found) + 1
            logger.warning("%s, line %d is damaged: from there it is done again", path, damaged)
            break
        end += len(line) + 1
    if end < len(content):
        write_whole(path, content[:end])
    return found


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def followed(path: Path) -> Path:
    """Path of a file with symbolic links resolved.

    Raises:
        OSError: the links form a loop, or the name is too long.
    """
    try:
        return path.resolve()
    except RuntimeError:  # a loop of links, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def is_device(path: Path) -> bool:
    """Whether a path is neither a file nor a folder, such as a pipe or a terminal."""
    return path.exists() and not path.is_file() and not path.is_dir()
