"""What to say of an image that a table names and that is not there."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping
from pathlib import Path

from dsd_trt.errors import counted

NO_IMAGE = "no image file"
_LONGEST = 300  # characters of a path in a message
_SHORTEST = 60  # of one that is none
_LONGEST_PATH = 4096  # characters that systems allow
_MOST = 100_000  # files of a folder that are compared with a name


def no_image(folder: Path, name: str) -> str:
    """Message that a folder has no image of a name, with the remedy where the cause is known.

    Args:
        folder: folder that the name is relative to.
        name: path as it is written in the table.
    """
    if name[:5].lower() == "data:":
        return (
            f"{name[:_SHORTEST]!r}... is a data URI, and images are files: write each into a file, "
            "or into a binary column of Parquet"
        )
    if name[:7].lower() == "file://":
        return f"{name[:_LONGEST]!r} is a URL: write its path alone, without file://"
    if "://" in name:
        return f"{name[:_LONGEST]!r} is a URL, and images are files: download it first"
    message = f"{NO_IMAGE} {str(folder / name)[:_LONGEST]!r}"
    if len(name) > _LONGEST_PATH:
        return (
            f"{message[:_SHORTEST]}...', and a name of {counted(len(name), 'character')} is none: "
            "an encoded image belongs into a file, or into a binary column of Parquet"
        )
    if name.startswith("~"):
        return f"{message}: write out the home folder, ~ stands for it in shells alone"
    if "\\" in name and os.path.lexists(folder / name.replace("\\", "/")):
        return f"{message}: write its path with /, not with \\"
    if (near := _near(folder, name)) is not None:
        return f"{message}; is {near[:_LONGEST]!r} meant?"
    return message


def _near(folder: Path, name: str) -> str | None:
    """Path of the only file whose name differs by capitals or an image's suffix; None without one.

    Args:
        folder: folder that the name is relative to.
        name: path as it is written in the table.
    """
    from dsd_trt.image.preprocess import image_suffixes  # imports Pillow

    place = folder
    *parents, last = Path(name).parts or ("",)
    for part in parents:
        if not os.path.lexists(place / part):
            found = _names(place).get(part.lower(), ())
            if len(found) != 1:
                return None
            part = found[0]
        place /= part
    names = _names(place)
    found = names.get(last.lower(), ())
    if not found:
        stem = Path(last).stem.lower()
        found = tuple(it for end in image_suffixes() for it in names.get(f"{stem}{end}", ()))
    if len(found) != 1:
        return None
    path = place / found[0]
    return str(path if Path(name).is_absolute() else path.relative_to(folder))


def _names(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """Names in a folder by their lower case; none if it cannot be listed, or is very large."""
    try:
        return _listed(os.fspath(folder), folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@functools.lru_cache(16)
def _listed(folder: str, changed: int) -> Mapping[str, tuple[str, ...]]:
    """Names in a folder by their lower case.

    Args:
        folder: path of the folder.
        changed: time of its last change, so that the answer is of today.
    """
    names: dict[str, tuple[str, ...]] = {}
    with os.scandir(folder) as entries:
        listed = [it.name for it in itertools.islice(entries, _MOST + 1)]
    for name in listed if len(listed) <= _MOST else ():
        names[name.lower()] = (*names.get(name.lower(), ()), name)
    return names
