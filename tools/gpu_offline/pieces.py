"""Archives cut into pieces: what `pack.py` writes and `unpack.py` reads, on the standard library.

A transfer is a folder of pieces with the manifest `kit.json`, which is the same in each of them. A
piece is `NAME.000`, `NAME.001` and so on: consecutive bytes of the archive NAME.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "kit.json"


class KitError(Exception):
    """A kit that cannot be packed or unpacked; the message has the next step."""


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes of an archive.

    Attributes:
        file: name of the file, such as "ort.000".
        size: length of the piece in bytes.
        sha256: hash of the content, in hexadecimal.
        transfer: number of the transfer that carries it, from 1.
    """

    file: str
    size: int
    sha256: str
    transfer: int

    def fault(self, path: Path) -> str | None:
        """Why a file is not this piece, or None if it is."""
        content = path.read_bytes()
        if len(content) != self.size:
            return f"it has {len(content)} bytes instead of {self.size}"
        if hashlib.sha256(content).hexdigest() != self.sha256:
            return "its SHA-256 differs"
        return None


@dataclass(frozen=True)
class Kit:
    """Manifest of a kit.

    Attributes:
        python: Python version of the GPU machine, such as "3.12".
        capability: compute capability of its GPU, such as "9.0".
        archives: pieces of each archive in order, by the archive's name.
    """

    python: str
    capability: str
    archives: Mapping[str, tuple[Piece, ...]]

    @property
    def transfers(self) -> int:
        """Number of transfers."""
        return max((it.transfer for pieces in self.archives.values() for it in pieces), default=0)

    def whole_after(self, transfer: int) -> list[str]:
        """Archives whose last piece arrives with a transfer."""
        return [name for name, pieces in self.archives.items() if pieces[-1].transfer == transfer]

    def to_json(self) -> str:
        """The manifest as indented JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Kit:
        """Read the manifest in a folder.

        Raises:
            KitError: there is no manifest, or it is none of a kit.
        """
        path = folder / MANIFEST
        try:
            return cls._of(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise KitError(f"{folder} is no transfer of a kit: it has no {MANIFEST}") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise KitError(f"{path} is damaged ({error}): transfer it again") from error

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Kit:
        archives = {
            name: tuple(Piece(**piece) for piece in pieces)
            for name, pieces in fields.pop("archives").items()
        }
        if not all(archives.values()):
            raise ValueError("an archive has no pieces")
        return cls(archives=archives, **fields)


def cut(archives: Mapping[str, bytes], room: int, folder: Path) -> dict[str, tuple[Piece, ...]]:
    """Write the pieces of archives to `folder/1`, `folder/2` and so on, filled in turn.

    Args:
        archives: content of each archive by name, in the order in which they travel.
        room: largest sum of the pieces of a transfer, in bytes.
        folder: folder for the transfers, without any yet.
    """
    made: dict[str, tuple[Piece, ...]] = {}
    transfer, left = 1, room
    for name, content in archives.items():
        pieces: list[Piece] = []
        at = 0
        while at < len(content):
            if not left:
                transfer, left = transfer + 1, room
            part = content[at : at + left]
            target = folder / str(transfer)
            target.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(part).hexdigest()
            pieces.append(Piece(f"{name}.{len(pieces):03d}", len(part), digest, transfer))
            (target / pieces[-1].file).write_bytes(part)
            at, left = at + len(part), left - len(part)
        made[name] = tuple(pieces)
    return made
