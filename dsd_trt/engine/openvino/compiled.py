"""OpenVINO's cached compiled models, verified before they are used again.

OpenVINO 2026.4 loads its cache unchecked: one flipped bit of a weight there changes scores without
a message. Each compiled model therefore has its own folder with a checksum of its file. A process
that can write the file can also write the checksum, so a cryptographic hash would add no
protection; CRC-32 takes a third of its time.

OpenVINO never removes anything either. When a model has been compiled, the folders that were not
used for the longest time are removed until the limit `COMPILED_BYTES` holds, and with them what
earlier versions left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsd_trt.errors import DsdError
from dsd_trt.files.disk import in_gigabytes
from dsd_trt.files.unfinished import is_abandoned, is_unfinished, remove, unfinished_name
from dsd_trt.files.whole import write_whole
from dsd_trt.log import get_logger

logger = get_logger(__name__)

STORE = "compiled"
"""Folder in the cache that holds one folder per compiled model."""

_ENDING = ".blob"
_PART = 2**20  # bytes per read
_WEIGHTS = 4  # models kept per graph: bundles that differ in their weights alone share a folder
_OLDER = ("openvino", "openvino-f32", "openvino-bf16")  # stores of earlier versions
_DAY = 24 * 3600
_LARGE = 2**29  # bytes of a compiled model that warrant a warning
_TRIALS = 10


@contextlib.contextmanager
def kept_compiled(store: Path, key: Any, limit: int) -> Iterator[Path | None]:
    """A folder for one compiled model of OpenVINO; the block compiles it, or loads it from there.

    A file is used only if its checksum agrees. If a file cannot be read or written, the model is
    compiled again at the next start; that is not an error.

    Args:
        store: folder that holds one folder per compiled model; see `STORE`.
        key: everything the compiled model depends on except its weights, as JSON values; OpenVINO
            names its file by the content of both.
        limit: bytes that the store may take; the last models used are kept.

    Yields:
        The folder; None if it holds a damaged file that cannot be removed.
    """
    content = json.dumps(key, sort_keys=True)
    folder = store / hashlib.sha256(content.encode()).hexdigest()[:32]
    with _in_use(folder):
        known = {it: _sum(it) for it in _blobs(folder)}
        for blob, found in known.items():
            if found is None or found != _written(blob):
                try:
                    blob.unlink(missing_ok=True)
                except OSError:
                    yield None
                    return
        yield folder
        fresh = 0
        for blob in _blobs(folder):
            current = known.get(blob)
            if (current is None or current != _written(blob)) and (found := _sum(blob)):
                fresh += _size(blob)
                with contextlib.suppress(DsdError):
                    write_whole(_sum_path(blob), found)
        with contextlib.suppress(OSError):
            os.utime(folder)  # marks it as the last one used
        # A warning: gigabytes of the disk should not go unnoticed.
        logger.log(
            logging.WARNING if fresh >= _LARGE else logging.INFO,
            "compiled model of %s %s the cache, %s",
            *(in_gigabytes(sum(map(_size, _blobs(folder)))), "put into" if fresh else "from"),
            folder,
        )
        if fresh:
            _forget_weights(folder)
            _shrink(store, limit)


def is_kept(folder: Path) -> bool:
    """Whether a folder that `kept_compiled` yields holds a compiled model."""
    return any(it.is_file() for it in _blobs(folder))


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Protect a folder from being removed by another process, where the system has locks."""
    with contextlib.ExitStack() as stack:
        for _ in range(_TRIALS):  # another process may remove it until it is locked
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                lock = _locked(folder, shared=True)
                stack.callback(os.close, lock)
                if os.path.samestat(folder.stat(), os.fstat(lock)):
                    break
        yield


def _locked(folder: Path, *, shared: bool) -> int:
    """A descriptor that holds a folder's lock, which ends with the process in any case.

    Args:
        folder: folder of a compiled model, which must exist.
        shared: whether others may share the lock; such a lock is waited for.

    Raises:
        OSError: another process holds the lock, or the folder cannot be opened.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows, where files in use cannot be removed
        pass
    except OSError:
        os.close(lock)
        raise
    return lock


def _forget_weights(folder: Path) -> None:
    """Remove all but the last models of a graph that were compiled."""
    for blob in sorted(_blobs(folder), key=_changed)[:-_WEIGHTS]:
        for path in (blob, _sum_path(blob)):
            remove(path)


def _shrink(store: Path, limit: int) -> None:
    """Remove the models that were not used for the longest time, and what no version reads."""
    for name in _OLDER:
        older = store.with_name(name)
        if older.is_dir() and time.time() - _changed(older) > _DAY:  # not of a running process
            remove(older)
    taken = 0
    for folder in sorted(_entries(store), key=_changed, reverse=True):
        if is_unfinished(folder):
            if is_abandoned(folder):
                remove(folder)
            continue
        size = _size(folder)
        if taken + size <= limit or not _removed(folder):
            taken += size


def _removed(folder: Path) -> bool:
    """Remove a folder that no process uses; a kill leaves it under a name that goes next time."""
    try:
        lock = _locked(folder, shared=False)
    except OSError:
        return False
    try:
        gone = folder.with_name(unfinished_name(folder.name))
        folder.rename(gone)
        remove(gone)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)


def _entries(store: Path) -> list[Path]:
    try:
        return list(store.iterdir())
    except OSError:
        return []


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(place: Path) -> int:
    """Bytes of a file, or of the files in a folder, as far as they can be seen."""
    total = 0
    for path in _entries(place) if place.is_dir() else [place]:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _blobs(folder: Path) -> list[Path]:
    return [it for it in _entries(folder) if it.suffix == _ENDING]


def _sum_path(blob: Path) -> Path:
    return blob.with_suffix(".crc32")


def _sum(blob: Path) -> str | None:
    total = 0
    try:
        with blob.open("rb") as file:
            while part := file.read(_PART):
                total = zlib.crc32(part, total)
    except OSError:
        return None
    return f"{total:08x}"


def _written(blob: Path) -> str | None:
    try:
        return _sum_path(blob).read_text("ascii")
    except (OSError, ValueError):
        return None
