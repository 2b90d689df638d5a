"""What to say of temporary files that the disk has no room for."""

from __future__ import annotations

import tempfile


def no_room(what: str, error: OSError) -> str:
    """Message that a temporary file cannot be written, with the remedy.

    Args:
        what: purpose of the file, such as "for names and texts" or "to unpack it".
        error: reason why it cannot be written.
    """
    folder = tempfile.gettempdir()
    return f"no room {what} in {folder} ({error.strerror}): name another folder in TMPDIR"
