"""Empty the machine code of other GPUs in a shared library, so that it packs smaller.

A fat binary holds machine code for several GPU architectures, of which the driver loads one. The
code of the others is overwritten with zeros. Nothing moves, so the library loads as before. Do this
only to libraries whose licence permits changes, for a machine whose GPU you know, and keep the
result to yourself.

    python tools/gpu_offline/prune.py LIBRARY 9.0
"""

from __future__ import annotations

import argparse
import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = b"\x50\xed\x55\xba"  # 0xBA55ED50, little-endian
MACHINE_CODE = 2  # kind of an entry; 1 is PTX, which the driver compiles
_HEADER = struct.Struct("<4sHHQ")  # magic, version, own size, bytes that follow
_ENTRY = struct.Struct("<HHIQIIHHI")  # kind, version, own size, payload, 5 more; the last: 90 = 9.0


@dataclass(frozen=True)
class Entry:
    """Code of one architecture in a fat binary.

    Attributes:
        kind: `MACHINE_CODE`, 1 for PTX, or another number for other content.
        architecture: ten times the compute capability, such as 90.
        start: position of the payload in the file, in bytes.
        size: size of the payload in bytes.
    """

    kind: int
    architecture: int
    start: int
    size: int


@dataclass
class Pruned:
    """Summary of a pruned library.

    Attributes:
        found: number of entries with machine code, by architecture.
        fat_binaries: number of fat binaries in the file.
        fitting: number of those with machine code for the GPU.
        emptied: number of bytes that were overwritten.
    """

    found: Counter[int] = field(default_factory=Counter)
    fat_binaries: int = 0
    fitting: int = 0
    emptied: int = 0


class PruneError(Exception):
    """A library without machine code for the GPU."""


def architecture(capability: str) -> int:
    """Architecture of a compute capability: 90 for "9.0"."""
    major, _, minor = capability.partition(".")
    return 10 * int(major) + int(minor)


def fat_binaries(data: bytes | mmap.mmap) -> Iterator[list[Entry]]:
    """Entries of each fat binary; bytes that merely look like a header are passed over."""
    at = 0
    while (at := data.find(MAGIC, at)) >= 0:
        entries, end = _read(data, at)
        if entries:
            yield entries
        at = end if entries else at + len(MAGIC)


def _read(data: bytes | mmap.mmap, at: int) -> tuple[list[Entry], int]:
    """Entries of the fat binary at a position, and its end; none if it is not one."""
    if at + _HEADER.size > len(data):
        return [], at
    _, version, own, following = _HEADER.unpack_from(data, at)
    position, end = at + own, at + own + following
    if version != 1 or own != _HEADER.size or end > len(data):
        return [], at
    entries = []
    while position < end:
        if position + _ENTRY.size > end:
            return [], at
        kind, _, size, payload, _, _, _, _, number = _ENTRY.unpack_from(data, position)
        if size < _ENTRY.size or position + size + payload > end:
            return [], at
        entries.append(Entry(kind, number, position + size, payload))
        position += size + payload
    return entries, end


def loaded(entries: list[Entry], wanted: int) -> list[Entry]:
    """Entries that a GPU can use.

    Machine code for the GPU itself, else for the nearest architecture below of the same major
    version; if there is none, whatever is no machine code, because the driver compiles PTX.
    """
    code = [entry for entry in entries if entry.kind == MACHINE_CODE]
    fitting = [
        entry.architecture
        for entry in code
        if entry.architecture // 10 == wanted // 10 and entry.architecture <= wanted
    ]
    if fitting:
        return [entry for entry in code if entry.architecture == max(fitting)]
    return [entry for entry in entries if entry.kind != MACHINE_CODE]


def prune(path: Path, capability: str) -> Pruned:
    """Empty a library's code for other GPUs in place.

    Args:
        path: shared library, which is changed.
        capability: compute capability of the GPU, such as "9.0".

    Raises:
        PruneError: the library has machine code, but nothing that this GPU can load.
    """
    wanted, summary = architecture(capability), Pruned()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        found = list(fat_binaries(data))
        code = [entry for entries in found for entry in entries if entry.kind == MACHINE_CODE]
        summary.found.update(entry.architecture for entry in code)
        kept = [loaded(entries, wanted) for entries in found]
        summary.fat_binaries = len(found)
        summary.fitting = sum(any(it.kind == MACHINE_CODE for it in entries) for entries in kept)
        if code and not any(kept):
            known = ", ".join(f"{number / 10:.1f}" for number in sorted(summary.found))
            raise PruneError(
                f"{path.name} has no code for compute capability {capability}, only for {known}: "
                "it cannot run on that GPU"
            )
        for entries, useful in zip(found, kept, strict=True):
            for entry in entries:
                if entry not in useful:
                    data[entry.start : entry.start + entry.size] = bytes(entry.size)
                    summary.emptied += entry.size
    return summary


def main() -> None:
    """Prune the library that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("capability", help="compute capability of the GPU to keep, such as 9.0")
    given = parser.parse_args()
    try:
        summary = prune(given.library, given.capability)
    except (PruneError, OSError) as error:
        raise SystemExit(str(error)) from error
    found = ", ".join(f"{n} of {number / 10:.1f}" for number, n in sorted(summary.found.items()))
    about = f"{summary.fitting} of {summary.fat_binaries} fat binaries have code for it"
    print(f"{summary.emptied} bytes emptied; {about}: {found}")


if __name__ == "__main__":
    main()
