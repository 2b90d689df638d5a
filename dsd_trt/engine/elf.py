"""Shared libraries that are cut short, as by a copy that broke off.

Loading one may end the process with a bus error, so its size is compared before.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

from dsd_trt.errors import counted

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian: Linux on x86-64 and aarch64
_LOADED = 1  # PT_LOAD: a segment that is mapped into memory
_SEARCH, _SEARCH_SIZE = 4, 5  # RTLD_DI_SERINFO and RTLD_DI_SERINFOSIZE of <dlfcn.h>


class _Place(ctypes.Structure):
    """Dl_serpath of <dlfcn.h>."""

    _fields_ = (("name", ctypes.c_char_p), ("flags", ctypes.c_uint))


class _Search(ctypes.Structure):
    """Dl_serinfo of <dlfcn.h>: its size in bytes with all places, of which the first is here."""

    _fields_ = (("size", ctypes.c_size_t), ("count", ctypes.c_uint), ("first", _Place * 1))


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


def folder_of(name: str) -> Path | None:
    """The folder where the loader finds a library.

    The loader's cache (/etc/ld.so.cache) is left out, since only the loader reads it.

    Args:
        name: file name of the library, such as "libcuda.so.1".

    Returns:
        The first folder that has it, of LD_LIBRARY_PATH and the system's; None if there is none,
        or if the system's loader does not say where it searches.
    """
    return next((it for it in _searched() if (it / name).is_file()), None)


def _searched() -> list[Path]:
    """Folders where the loader searches, in its order."""
    if not sys.platform.startswith("linux"):
        return []
    program = ctypes.CDLL(None)
    dlinfo, handle = program.dlinfo, ctypes.c_void_p(program._handle)
    needed = _Search()
    if dlinfo(handle, _SEARCH_SIZE, ctypes.byref(needed)):  # musl's loader does not know it
        return []
    memory = ctypes.create_string_buffer(needed.size)
    found = _Search.from_buffer(memory)
    found.size, found.count = needed.size, needed.count
    if dlinfo(handle, _SEARCH, ctypes.byref(found)):
        return []
    places = (_Place * found.count).from_buffer(memory, _Search.first.offset)
    return [Path(os.fsdecode(place.name)) for place in places]


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
