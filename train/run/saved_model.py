"""Atomic writing of models by libraries that write many files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from dsd_trt.errors import InputError
from dsd_trt.files.folders import whole_folder


@contextlib.contextmanager
def saved_model(folder: Path) -> Iterator[Path]:
    """A temporary folder to save a model in, which replaces `folder` at the end of the block.

    Args:
        folder: final folder of the model, see `whole_folder`.

    Raises:
        InputError: a file could not be written, for example on a full disk, or another process
            writes to the folder.
    """
    try:
        with whole_folder(folder.resolve()) as unfinished:
            yield unfinished
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's errors
        raise InputError(f"cannot write the model to {folder}: {error}") from error
