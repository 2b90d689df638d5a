"""What to say of an image that a table names and that is not there."""

from __future__ import annotations

import os
from pathlib import Path

_LONGEST = 300  # characters of a path in a message


def no_image(folder: Path, name: str) -> str:
    """Message that a folder has no image of a name, with the remedy where the cause is known.

    Args:
        folder: folder that the name is relative to.
        name: path as it is written in the table.
    """
    if "://" in name:
        return f"{name[:_LONGEST]!r} is a URL, and images are files: download it first"
    message = f"no image file {str(folder / name)[:_LONGEST]!r}"
    if "\\" in name and os.path.lexists(folder / name.replace("\\", "/")):
        return f"{message}: write its path with /, not with \\"
    return message
