"""Files that an unpickler reads: what is none, and why one was not read."""

from __future__ import annotations

import re
from pathlib import Path

from dsd_trt.errors import InputError
from dsd_trt.files.lfs import POINTER, is_pointer_file

_STARTS = (b"PK", b"\x80")  # PyTorch's zip archive, and a bare pickle


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


def require_pickle(path: Path) -> None:
    """Refuse a file that is no checkpoint of PyTorch by its first bytes, which an import precedes.

    Raises:
        InputError: there is no such file, or it is something else.
    """
    advice = "Give the pytorch_model.bin that the released code wrote"
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}. {advice}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. {advice}") from None
    if is_pointer_file(path):
        raise InputError(f"cannot read {path}: {POINTER}")
    if not start.startswith(_STARTS):
        raise InputError(
            f"{path} cannot be loaded as a checkpoint of tensors alone: it is damaged, cut short "
            f"or something else. {advice}"
        )
