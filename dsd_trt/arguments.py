"""Checks of arguments that several functions take: flags, paths, progress callbacks."""

from __future__ import annotations

import os
import reprlib
from pathlib import Path

import numpy as np

from dsd_trt.errors import InputError
from dsd_trt.results import Progress


def checked_flag(flag: bool, name: str) -> bool:
    """A yes or no, validated: a string such as "no" would count as yes.

    Raises:
        InputError: it is neither True nor False.
    """
    if not isinstance(flag, (bool, np.bool_)):
        raise InputError(f"{name} must be True or False, got {described(flag)}")
    return bool(flag)


def checked_path(path: str | os.PathLike[str], name: str) -> Path:
    """The path of a file or folder, validated; whether there is one is checked later.

    Raises:
        InputError: it is no path, is empty, or holds a NUL character.
    """
    if not isinstance(path, (str, os.PathLike)) or not (text := os.fspath(path)) or "\0" in text:
        raise InputError(f"{name} must be a path, got {described(path)}")
    return Path(path)


def checked_progress(progress: Progress | None) -> Progress | None:
    """A progress callback, validated.

    Raises:
        InputError: it is not callable.
    """
    if progress is not None and not callable(progress):
        raise InputError(f"progress must be a function, got {described(progress)}")
    return progress


def described(value: object) -> str:
    """Type and value of an argument, for messages."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    return f"{type(value).__name__} {shown(value)}"


def shown(value: object) -> str:
    """An argument's value on one line, shortened."""
    return " ".join(reprlib.repr(value).split())
