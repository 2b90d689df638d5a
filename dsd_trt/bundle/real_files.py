"""Copies of a bundle's files for engines that refuse links.

OpenVINO and ONNX's own tools refuse weights that are links out of the graph's folder. All files of
the Hugging Face cache are such links. Engines get a copy instead, made once per machine; it takes
no disk space if the file system can clone files.

Copies lie in the cache (`dsd_trt.cache`), named by their content; the last two used are kept. If
the cache is disabled, a copy lies in the temporary folder until the process ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from dsd_trt.bundle.folder import Bundle, verify_files
from dsd_trt.bundle.manifest import MANIFEST_NAME
from dsd_trt.cache import cache_folder
from dsd_trt.errors import BundleError, InputError
from dsd_trt.files.disk import clone_or_copy, in_gigabytes, require_room
from dsd_trt.files.folders import sync_folder, sync_tree
from dsd_trt.files.unfinished import is_unfinished, unfinished_name
from dsd_trt.log import get_logger

logger = get_logger(__name__)

_FOLDER, _TEMPORARY, _LOCK = "bundles", "dsd-trt-bundle-", ".lock"
_KEPT = 2  # copies

_one_at_a_time = threading.Lock()
_held: dict[str, tuple[Path, list[object]]] = {}  # copies used by this process, with their locks


def with_real_files(bundle: Bundle) -> Bundle:
    """The bundle itself, or a verified copy if some of its files are links.

    Raises:
        InputError: there is not enough disk space for the copy, or it cannot be written.
        BundleError: the bundle's files have changed since they were verified.
    """
    if not any(bundle.path(name).is_symlink() for name in bundle.manifest.files):
        return bundle
    key = bundle.manifest.digest[:32]
    with _one_at_a_time:
        if key not in _held or not _held[key][0].is_dir():
            try:
                _held[key] = _hold(bundle, key)
            except OSError as error:
                raise InputError(
                    f"the files of the bundle {bundle.folder} are links, which engines refuse, and "
                    f"cannot be copied: {error}. Name another folder in DSD_TRT_CACHE"
                ) from error
        return replace(bundle, folder=_held[key][0])


def any_temporary() -> bool:
    """Whether there are temporary copies, removed only by an orderly end of Python."""
    return any(
        isinstance(it, tempfile.TemporaryDirectory) for _, keeps in _held.values() for it in keeps
    )


def _hold(bundle: Bundle, key: str) -> tuple[Path, list[object]]:
    """A copy, and the objects that protect it from being removed."""
    cache = cache_folder()
    if cache is not None:
        with contextlib.suppress(_CannotLockError):
            return _kept_copy(bundle, cache / _FOLDER, key)
    return _temporary_copy(bundle)


def _kept_copy(bundle: Bundle, store: Path, key: str) -> tuple[Path, list[object]]:
    """The cached copy, made if it is missing, and locked against removal."""
    folder = store / key
    for trial in (1, 2):
        with _alone_in(store):
            if made := trial == 2 or not (folder / MANIFEST_NAME).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                _remove_copies(store, _KEPT - 1)
                unfinished = store / unfinished_name(key)
                unfinished.mkdir()
                try:
                    _copy(bundle, unfinished)
                    sync_tree(unfinished)
                    unfinished.rename(folder)
                    sync_folder(store)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
            else:
                logger.info("the copy of the bundle's files in the cache is used, %s", folder)
                os.utime(folder)  # marks it as the last one used
                _remove_copies(store, _KEPT)
            held = (folder / MANIFEST_NAME).open(encoding="utf-8")
            _lock(held, shared=True)
        if made:
            return folder, [held]
        with contextlib.suppress(BundleError):  # replace a damaged copy
            verify_files(folder, bundle.manifest)
            return folder, [held]
        held.close()
    raise AssertionError("made in the second trial")


def _temporary_copy(bundle: Bundle) -> tuple[Path, list[object]]:
    """A copy for this process only; also removes copies left by killed processes."""
    for abandoned in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        with (
            contextlib.suppress(OSError, _CannotLockError),
            (abandoned / _LOCK).open(encoding="utf-8") as lock,
        ):
            _lock(lock, shared=False, wait=False)
            shutil.rmtree(abandoned)
    temporary = tempfile.TemporaryDirectory(prefix=_TEMPORARY)
    folder = Path(temporary.name)
    held = (folder / _LOCK).open("w", encoding="utf-8")
    with contextlib.suppress(_CannotLockError):
        _lock(held, shared=True)
    _copy(bundle, folder)
    return folder, [temporary, held]


def _copy(bundle: Bundle, folder: Path) -> None:
    """Copy a bundle's files to an empty folder, and verify them."""
    files, taken = bundle.manifest.files, 0
    require_room(
        folder,
        [bundle.path(name) for name in files],
        f"a copy of the bundle {bundle.folder}, whose files are links,",
        "Name a folder on another disk in DSD_TRT_CACHE",
    )
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        taken += clone_or_copy(bundle.path(name), folder / name)
    verify_files(folder, bundle.manifest)
    (folder / MANIFEST_NAME).write_text(bundle.manifest.to_json(), encoding="utf-8")
    if taken:
        logger.warning(
            "engines take no links: the files of %s were copied to %s, %s",
            *(bundle.folder, folder.parent, in_gigabytes(taken)),
        )


def _remove_copies(store: Path, keep: int) -> None:
    """Remove unfinished copies, and copies not in use except the last ones used."""
    found = sorted(store.glob("*/"), key=lambda folder: -folder.stat().st_mtime_ns)
    # A copy without a manifest is unfinished or half removed, by a killed process.
    whole = [folder for folder in found if (folder / MANIFEST_NAME).is_file()]
    whole = [folder for folder in whole if not is_unfinished(folder)]
    for folder in {*found} - {*whole[:keep]}:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if folder in whole:
                held = stack.enter_context((folder / MANIFEST_NAME).open(encoding="utf-8"))
                _lock(held, shared=False, wait=False)  # BlockingIOError: in use by another process
                folder = folder.rename(folder.with_name(unfinished_name(folder.name)))
            shutil.rmtree(folder)


@contextlib.contextmanager
def _alone_in(store: Path) -> Iterator[None]:
    """Lock a store; the lock of a killed process is released by the system."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        lock = (store / _LOCK).open("a", encoding="utf-8")
    except OSError as error:
        raise _CannotLockError from error
    with lock:
        _lock(lock, shared=False)
        yield


def _lock(file: IO[str], *, shared: bool, wait: bool = True) -> None:
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise _CannotLockError from error
    try:
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # network file systems
        raise _CannotLockError from error


class _CannotLockError(Exception):
    """The file system does not support locks."""
