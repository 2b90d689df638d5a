"""Names of files from sources that are not trusted."""

from __future__ import annotations

from pathlib import PurePosixPath


def is_file_name(name: str) -> bool:
    """Whether file systems accept a name, or a path of names."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:  # a lone surrogate, from a JSON escape
        return False
    longest = max(map(len, encoded.split(b"/")))
    return bool(encoded) and b"\0" not in encoded and longest <= 255 and len(encoded) < 4096


def stays_inside(name: str) -> bool:
    """Whether a file's relative path stays inside the bundle, links aside."""
    pure = PurePosixPath(name)
    absolute = not pure.parts or pure.is_absolute()
    return not (absolute or ".." in pure.parts or "\\" in name or "\0" in name)
