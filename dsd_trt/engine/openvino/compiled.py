"""What OpenVINO compiled and keeps for the next start, looked at before it is used again.

OpenVINO 2026.4 computes with whatever its cache holds: one changed bit of a weight there changes
scores without a word. Each compiled model has a folder of its own, with a checksum of its file:
who can write there can write both, so CRC-32 keeps off what a hash would, in a third of its time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsd_trt.errors import DsdError
from dsd_trt.files.whole import sha256_of, write_whole

_ENDING = ".blob"
_PART = 2**20  # bytes read at once


@contextlib.contextmanager
def kept_compiled(store: Path, graph: Path, key: Any) -> Iterator[Path | None]:
    """A folder for OpenVINO to keep a compiled model in; the block compiles it, or takes it there.

    What is there has the checksum it was written with. Whatever cannot be read or written is
    compiled again at the next start, which is no error.

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
        current = known.get(blob)
        if (current is None or current != _written(blob)) and (found := _sum(blob)):
            with contextlib.suppress(DsdError):
                write_whole(_sum_path(blob), found)


def _blobs(folder: Path) -> list[Path]:
    try:
        return [it for it in folder.iterdir() if it.suffix == _ENDING]
    except OSError:
        return []


def _sum_path(blob: Path) -> Path:
    return blob.with_suffix(".crc32")


def _sum(blob: Path) -> str | None:
    total = 0
    try:
        with blob.open("rb") as file:
            while part := file.read(_PART):
                total = zlib.crc32(part, total)
    except OSError:
        return None
    return f"{total:08x}"


def _written(blob: Path) -> str | None:
    try:
        return _sum_path(blob).read_text("ascii")
    except (OSError, ValueError):
        return None
