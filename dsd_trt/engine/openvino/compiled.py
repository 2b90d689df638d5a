"""OpenVINO's cached compiled models, verified before they are used again.

OpenVINO 2026.4 loads its cache unchecked: one flipped bit of a weight there changes scores without
a message. Each compiled model therefore has its own folder with a checksum of its file. A process
that can write the file can also write the checksum, so a cryptographic hash would add no
protection; CRC-32 takes a third of its time.
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
from dsd_trt.files.whole import write_whole

_ENDING = ".blob"
_PART = 2**20  # bytes per read


@contextlib.contextmanager
def kept_compiled(store: Path, key: Any) -> Iterator[Path | None]:
    """A folder for one compiled model of OpenVINO; the block compiles it, or loads it from there.

    A file is used only if its checksum agrees. If a file cannot be read or written, the model is
    compiled again at the next start; that is not an error.

    Args:
        store: folder that holds one folder per compiled model.
        key: everything the compiled model depends on except its weights, as JSON values; OpenVINO
            names its file by the content of both.

    Yields:
        The folder; None if it holds a damaged file that cannot be removed.
    """
    content = json.dumps(key, sort_keys=True)
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
