"""Models written whole or not at all, by libraries that write many files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from dsd_trt.errors import InputError
from dsd_trt.files.folders import whole_folder


@contextlib.contextmanager
def saved_model(folder: Path) -> Iterator[Path]:
    """A folder to save a model in, which takes the place of `folder` as `whole_folder` has it.

    Raises:
        InputError: the disk is full, or the like, or another process writes there.
    """
    try:
        with whole_folder(folder.resolve()) as unfinished:
            yield unfinished
    except (OSError, SafetensorError) as error:  # safetensors words the system's, too
        raise InputError(f"cannot write the model to {folder}: {error}") from error
