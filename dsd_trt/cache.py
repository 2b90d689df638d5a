"""The cache of this machine: compiled models, measurements, copies of bundles.

The folder is `$DSD_TRT_CACHE`, otherwise `dsd-trt` in `$XDG_CACHE_HOME` or `~/.cache`. It may be
deleted at any time. An empty `DSD_TRT_CACHE` disables it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path

from dsd_trt.errors import DsdError
from dsd_trt.files.schema import read_json
from dsd_trt.files.whole import write_whole
from dsd_trt.log import get_logger

logger = get_logger(__name__)


VARIABLE = "DSD_TRT_CACHE"
"""Variable that names the folder."""

_IN_HOME = "~/.cache/dsd-trt"


def named_folder() -> Path | None:
    """The cache folder, which need not exist; None if it is disabled.

    Raises:
        RuntimeError: it would be in the user's home, and there is none.
    """
    if (named := os.environ.get(VARIABLE)) is not None:
        return Path(named) if named else None
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "dsd-trt"
    return Path(_IN_HOME).expanduser()


def cache_folder() -> Path | None:
    """The cache folder; None if it is disabled or cannot be written to."""
    try:
        folder = named_folder()
    except RuntimeError:  # for example, an unnamed user of a container
        _say_unwritable(Path(_IN_HOME), "there is no home folder")
        return None
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _say_unwritable(folder, error.strerror)
        return None
    if not os.access(folder, os.W_OK):
        _say_unwritable(folder, "it is read-only")
        return None
    return folder


@functools.cache  # once per process
def _say_unwritable(folder: Path, reason: str | None) -> None:
    logger.warning(
        "nothing is remembered for the next start, which is slower: cannot write %s (%s). Name "
        "another folder in DSD_TRT_CACHE, or leave it empty to remember nothing",
        folder,
        reason,
    )


def recall(kind: str, key: str) -> float | None:
    """Read a remembered measurement; None if there is none.

    Args:
        kind: name of the measured quantity.
        key: everything the measurement depends on.
    """
    if (path := _path(kind, key)) is None:
        return None
    try:
        kept = read_json(path)
        value = float(kept["value"]) if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None  # missing or damaged: measure again
    if value is not None:
        logger.info("remembered on this machine: %s, %g (%s)", kind, value, path)
    return value


def remember(kind: str, key: str, value: float) -> None:
    """Store a measurement; failure to write is not an error."""
    if (path := _path(kind, key)) is None:
        return
    with contextlib.suppress(DsdError):
        write_whole(path, json.dumps({"key": key, "value": value}))
        logger.info("to be remembered on this machine: %s, %g (%s)", kind, value, path)


def _path(kind: str, key: str) -> Path | None:
    folder = cache_folder()
    return folder and folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
