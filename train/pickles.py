"""Why a pickle was not read, in words for its owner."""

from __future__ import annotations

import re


def pickle_fault(error: Exception) -> str:
    """Reason that an unpickler which refuses code did not read a file.

    Unpicklers read junk as instructions, and then fail like a program: "pop from empty list". When
    PyTorch's refuses code, its message advises to run it.

    Args:
        error: what the unpickler raised.
    """
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if asked := re.search(r"GLOBAL (\S+)|it asks for (\S+),", str(error)):
        return f"it asks for {asked[1] or asked[2]}, which is refused"
    return "it is damaged, cut short or something else"
