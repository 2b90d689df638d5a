"""The cache of this machine, and the disks that are written to."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dsd_trt.cache import VARIABLE, named_folder
from dsd_trt.doctor.finding import Finding
from dsd_trt.doctor.studied import Needs
from dsd_trt.errors import DISK_FULL
from dsd_trt.files.disk import in_gigabytes, nearest_folder
from dsd_trt.files.unfinished import unfinished_name

_TRIAL = 4096  # bytes that are written to see whether a disk takes them
_FULL = "the disk is full, or a quota is used up"
_NO_GROWTH = "files may not grow: ulimit -f"
_GROW = "ulimit -f unlimited"
_LEAST = 2**20  # bytes for measurements and journals


def examine(needs: Needs | None) -> Iterator[Finding]:
    """The cache, the folder of temporary files, and the hub's cache if the bundle is from there.

    Args:
        needs: what the bundle needs; None if that is not known.
    """
    compiled = 0 if needs is None else needs.compiled_bytes
    yield _cache(max(compiled, _LEAST))
    yield _temporary()
    if needs is not None and needs.missing_bytes:
        yield _hub(needs.missing_bytes)


def _cache(needed: int) -> Finding:
    try:
        folder = named_folder()
    except RuntimeError:  # an unnamed user of a container
        detail = "there is no home folder, so nothing is kept for the next start"
        return Finding("cache", "warning", detail, _elsewhere(), {"folder": None})
    if folder is None:
        detail = f"{VARIABLE} is empty: nothing is kept for the next start, which is slower"
        return Finding("cache", "note", detail, f"unset {VARIABLE}", {"folder": None})
    size = _size_of(folder)
    facts = _facts(folder) | {"size_bytes": size}
    kept = f"{folder} has {in_gigabytes(size)}"
    if (why := why_unwritable(folder)) is not None:
        detail = f"{folder} cannot be written: {why}; nothing is kept for the next start"
        remedy = f"rm -r {shlex.quote(str(folder))}" if why == _FULL and size else _elsewhere()
        if why == _NO_GROWTH:
            remedy = _GROW
        return Finding("cache", "warning", detail, remedy, facts)
    free = shutil.disk_usage(nearest_folder(folder)).free
    if free < needed:
        detail = f"{kept}; its disk has room for {in_gigabytes(free)}, and compiled models of the "
        detail += f"bundle take about {in_gigabytes(needed)}"
        remedy = f"rm -r {shlex.quote(str(folder))}" if size > needed else _elsewhere()
        return Finding("cache", "warning", detail, remedy, facts)
    return Finding("cache", "ok", f"{kept}; {in_gigabytes(free)} are free", "", facts)


def _temporary() -> Finding:
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # none of the usual folders can be written
        detail = f"no folder takes temporary files: {error.strerror}"
        remedy = _GROW if why_unwritable(Path.cwd()) == _NO_GROWTH else "export TMPDIR=FOLDER"
        return Finding("temporary files", "fault", detail, remedy, {})
    if (why := why_unwritable(folder)) is not None:
        detail = f"{folder} cannot be written: {why}"
        remedy = "export TMPDIR=FOLDER"
        return Finding("temporary files", "warning", detail, remedy, _facts(folder))
    asked = os.environ.get("TMPDIR")
    if asked and Path(asked).absolute() != folder.absolute():  # Python passes it over silently
        why = why_unwritable(Path(asked)) or "it does not exist"
        detail = f"TMPDIR, {asked}, cannot be used: {why}; {folder} is taken in its place"
        return Finding("temporary files", "warning", detail, "unset TMPDIR", _facts(folder))
    detail = f"{folder}, {in_gigabytes(shutil.disk_usage(folder).free)} free"
    return Finding("temporary files", "ok", detail, "", _facts(folder))


def _hub(missing: int) -> Finding:
    """Room for files that are not downloaded yet, where huggingface_hub puts them."""
    folder = hub_folder()
    facts = _facts(folder)
    why = why_unwritable(folder)
    free = shutil.disk_usage(nearest_folder(folder)).free
    if why is not None:
        detail = f"{folder} cannot be written: {why}"
    elif free < missing:
        detail = f"{folder} has room for {in_gigabytes(free)}, and the bundle's missing files take "
        detail += in_gigabytes(missing)
    else:
        return Finding("hub's cache", "ok", f"{folder}, {in_gigabytes(free)} free", "", facts)
    return Finding("hub's cache", "fault", detail, "export HF_HUB_CACHE=FOLDER", facts)


def hub_folder() -> Path:
    """Folder of huggingface_hub's downloads, by the rule of its constants, without importing it."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = _expanded(os.environ.get("HF_HOME", f"{caches}/huggingface"))
    cache = os.environ.get("HUGGINGFACE_HUB_CACHE", f"{home}/hub")
    return Path(_expanded(os.environ.get("HF_HUB_CACHE", cache)))


def _expanded(path: str) -> str:
    """A path with the home folder and variables in their places."""
    # Unlike that of Path, this one leaves a path as it is where there is no home folder.
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111


def why_unwritable(folder: Path) -> str | None:
    """Why nothing can be written to a folder, as found by trying; None if it can.

    Args:
        folder: folder to write to; its innermost existing parent counts where it does not exist.
    """
    try:
        if folder.exists() and not folder.is_dir():
            return "it is a file, not a folder"
        nearest = nearest_folder(folder)
    except OSError as error:
        return error.strerror or str(error)
    trial = nearest / unfinished_name("doctor")
    try:
        try:
            with trial.open("xb", buffering=0) as file:
                file.write(bytes(_TRIAL))
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.EFBIG:
            return _NO_GROWTH
        if error.errno in DISK_FULL:
            return _FULL
        if error.errno == errno.EROFS:
            return "its disk is mounted read-only"
        if error.errno in (errno.EACCES, errno.EPERM) and hasattr(os, "getuid"):
            return f"{nearest} is of user {nearest.stat().st_uid}, and this one is {os.getuid()}"
        return error.strerror or str(error)
    return None


def _elsewhere() -> str:
    try:
        folder = Path(tempfile.gettempdir()) / "dsd-trt"
    except FileNotFoundError:
        folder = Path("FOLDER")
    return f"export {VARIABLE}={shlex.quote(str(folder))}"


def _facts(folder: Path) -> dict[str, object]:
    there = shutil.disk_usage(nearest_folder(folder))
    return {"folder": str(folder), "free_bytes": there.free, "disk_bytes": there.total}


def _size_of(folder: Path) -> int:
    """Bytes of all files in a folder; those that cannot be looked at are left out."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).lstat().st_size
            except OSError:
                continue
    return total
