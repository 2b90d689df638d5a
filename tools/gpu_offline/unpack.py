"""On the GPU machine: take the pieces of a transfer, and unpack every archive that is complete.

    python3 tools/gpu_offline/unpack.py .kit/1

Transfers may arrive in any order, and again. A damaged piece is named and left out. The others of
its transfer are taken, so that only this one has to travel again.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pieces import MANIFEST, Kit, KitError, Piece

KIT = Path(tempfile.gettempdir()) / "dsd-trt-kit"
"""Outside the working tree, which a transfer may replace."""


def take(transfer: Path, kit_folder: Path) -> tuple[Kit, list[str]]:
    """Copy the undamaged pieces of a transfer into the kit.

    Args:
        transfer: folder of the transfer, such as `.kit/1`.
        kit_folder: folder of the kit on this machine, created if missing.

    Returns:
        The kit's manifest, and a message for each damaged piece.

    Raises:
        KitError: the folder is no transfer, or it belongs to another kit.
    """
    kit = Kit.read(transfer)
    kit_folder.mkdir(parents=True, exist_ok=True)
    if not (kit_folder / MANIFEST).exists():
        shutil.copy(transfer / MANIFEST, kit_folder)
    elif Kit.read(kit_folder) != kit:
        raise KitError(
            f"{transfer} was packed at another time than what {kit_folder} holds: remove "
            f"{kit_folder} and take every transfer again, or name another folder with --kit"
        )
    faults = []
    for name, pieces in kit.archives.items():
        for piece in pieces:
            path = transfer / piece.file
            if (kit_folder / name).exists() or not path.exists():
                continue
            if (fault := piece.fault(path)) is not None:
                faults.append(f"{path} is damaged: {fault}. Transfer it again")
                continue
            partial = kit_folder / f".{piece.file}"
            shutil.copy(path, partial)
            partial.rename(kit_folder / piece.file)
    return kit, faults


def missing(pieces: Sequence[Piece], kit_folder: Path) -> list[Piece]:
    """Pieces of an archive that have not arrived."""
    return [piece for piece in pieces if not (kit_folder / piece.file).exists()]


def unpack(name: str, pieces: Sequence[Piece], kit_folder: Path) -> None:
    """Unpack a complete archive to the folder NAME of the kit, and remove its pieces."""
    paths = [kit_folder / piece.file for piece in pieces]
    content = io.BytesIO(b"".join(path.read_bytes() for path in paths))
    partial = kit_folder / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(fileobj=content, mode="r:xz") as archive:
        archive.extractall(partial, filter="data")
    partial.rename(kit_folder / name)
    for path in paths:
        path.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Take and unpack what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transfers", nargs="+", type=Path, help="folders such as .kit/1")
    parser.add_argument("--kit", type=Path, default=KIT, help=f"folder to unpack to [{KIT}]")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        faults = unpack_all(given.transfers, given.kit)
    except (KitError, OSError) as error:
        faults = [str(error)]
    print(f"{time.monotonic() - began:.1f} s")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 2 if faults else 0


def unpack_all(transfers: Sequence[Path], kit_folder: Path) -> list[str]:
    """Take transfers, and unpack what is complete; returns a message for each fault.

    Raises:
        KitError: a folder is no transfer, or it belongs to another kit.
    """
    faults = []
    for transfer in transfers:
        kit, damaged = take(transfer, kit_folder)
        faults += damaged
    for name, pieces in kit.archives.items():
        if (kit_folder / name).exists():
            print(f"{name}: unpacked before")
        elif waits := missing(pieces, kit_folder):
            numbers = sorted({piece.transfer for piece in waits})
            print(f"{name}: waits for transfer {', '.join(map(str, numbers))}")
        else:
            unpack(name, pieces, kit_folder)
            print(f"{name}: unpacked")
    if (here := f"{sys.version_info[0]}.{sys.version_info[1]}") != kit.python:
        faults.append(
            f"this is Python {here}, and the kit was packed for {kit.python}: run python"
            f"{kit.python}, or pack again with --python {here}"
        )
    return faults


if __name__ == "__main__":
    sys.exit(main())
