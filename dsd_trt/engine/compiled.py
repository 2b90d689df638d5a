"""What OpenVINO compiled and keeps for the next start, looked at before it is used again.

OpenVINO 2026.4 computes with whatever its cache holds: one changed bit of a weight there changes
scores without a word. Each compiled model has a folder of its own, with the hash of its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsd_trt.errors import DsdError
from dsd_trt.files import sha256_of, write_whole

_ENDING = ".blob"


@contextlib.contextmanager
def kept_compiled(store: Path, graph: Path, key: Any) -> Iterator[Path | None]:
    """A folder for OpenVINO to keep a compiled model in; the block compiles it, or takes it there.

    What is there has the hash it was written with. Whatever cannot be read or written is compiled
    again at the next start, which is no error.

    Args:
        store: of all such folders.
        graph: the ONNX file. Its weights may lie elsewhere: OpenVINO has them in a file's name.
        key: what else the compiled model depends on, as JSON takes it.

    Yields:
        The folder; None where there is something damaged that cannot be removed.
    """
    content = json.dumps([sha256_of(graph), key], sort_keys=True)
    folder = store / hashlib.sha256(content.encode()).hexdigest()[:32]
    known = {it: _sum(it) for it in _blobs(folder)}
    for blob, found in known.items():
        if found is None or found != _written(blob):
            try:
                blob.unlink(missing_ok=True)
            except OSError:
                yield None
                return
    yield folder
    for blob in _blobs(folder):
        if known.get(blob) is None or known[blob] != _written(blob):
            with contextlib.suppress(OSError, DsdError):
                write_whole(_sum_path(blob), sha256_of(blob))


def _blobs(folder: Path) -> list[Path]:
    try:
        return [it for it in folder.iterdir() if it.suffix == _ENDING]
    except OSError:
        return []


def _sum_path(blob: Path) -> Path:
    return blob.with_suffix(".sha256")


def _sum(blob: Path) -> str | None:
    try:
        return sha256_of(blob)
    except OSError:
        return None


def _written(blob: Path) -> str | None:
    try:
        return _sum_path(blob).read_text("ascii")
    except (OSError, ValueError):
        return None
