"""Shared libraries that are cut short, as by a copy that broke off.

Loading one may end the process with a bus error, so its size is compared before.
"""

from __future__ import annotations

import struct
from pathlib import Path

from dsd_trt.errors import counted

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian: Linux on x86-64 and aarch64
_LOADED = 1  # PT_LOAD: a segment that is mapped into memory


def why_cut(folder: Path, pattern: str) -> str | None:
    """The first library of a folder that is shorter than what is loaded of it.

    Args:
        folder: where the libraries are, such as `onnxruntime/capi`.
        pattern: glob pattern of their names.

    Returns:
        Its path and both sizes; None if there is no such library.
    """
    for path in sorted(folder.glob(pattern)):
        try:
            size, needed = path.stat().st_size, _loaded_size(path)
        except OSError:  # loading it gives the reason
            continue
        if size < needed:
            has = counted(size, "byte")
            return f"{path} is cut short: it has {has}, and {needed} or more are loaded"
    return None


def _loaded_size(path: Path) -> int:
    """Bytes from the beginning of a library to the end of its last segment; 0 if it has none."""
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or not head.startswith(_MAGIC):
            return 0
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(offset)
        table = file.read(size * count)
    if size < 56 or len(table) < size * count:
        return 0  # the loader refuses such a file
    ends = [0]
    for at in range(0, len(table), size):
        kind, _, begin, _, _, length = struct.unpack_from("<IIQQQQ", table, at)
        if kind == _LOADED:
            ends.append(begin + length)
    return max(ends)
