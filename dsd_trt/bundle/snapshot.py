"""The Hugging Face cache: a repository's files as links, and their permitted targets.

    CACHE/models--ORG--NAME/blobs/HASH                            content of a file
    CACHE/models--ORG--NAME/refs/main                             commit of a branch
    CACHE/models--ORG--NAME/snapshots/COMMIT/weights.data         link to ../../blobs/HASH
    CACHE/blobs/HA/HASH                                           content shared by repositories

huggingface_hub 2 moves files fetched by Xet to the last place, and leaves a link in the
repository's blobs.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_STORE_MARKER = ".huggingface-shared-blobs"
_STORED = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository in the cache.

    Attributes:
        repository: folder of the repository's blobs, refs and snapshots.
        commit: name of the snapshot, a commit hash.
    """

    repository: Path
    commit: str

    @classmethod
    def around(cls, folder: Path) -> Snapshot | None:
        """The snapshot that a folder is, or lies in; None if there is none."""
        inner = Path(os.path.realpath(folder))
        for place in (inner, *inner.parents):
            repository = place.parent.parent
            if place.parent.name == "snapshots" and repository.name.startswith("models--"):
                return cls(repository, place.name)
        return None

    @property
    def name(self) -> str:
        """Name of the repository, as ORG/NAME."""
        return "/".join(self.repository.name.split("--")[1:])

    def leads_to_blob(self, link: Path) -> bool:
        """Whether a link in the snapshot leads to a file of the repository and nowhere else.

        Only the link made by huggingface_hub is accepted. It is relative, as all of that library's
        links; an absolute link would break when the cache is moved.
        """
        blobs = self.repository / "blobs"
        blob = _one_step(link)
        if blob is None or blob.parent != blobs or blobs.is_symlink():
            return False
        if not blob.is_symlink():
            return True
        stored, store = _one_step(blob), self.repository.parent / "blobs"
        return (
            stored is not None
            and stored == store / stored.name[:2] / stored.name
            and _STORED.fullmatch(stored.name) is not None
            and os.path.realpath(stored) == str(stored)
            and (store / _STORE_MARKER).is_file()
        )

    def download(self, files: Iterable[str] = (), *, force: bool = False) -> str:
        """Command that downloads the snapshot, or some of its files."""
        words = ["hf", "download", self.name, *files, "--revision", self.commit]
        return shlex.join([*words, *(["--force-download"] if force else [])])


def _one_step(link: Path) -> Path | None:
    """Direct target of a link; None if it is absolute."""
    target = link.readlink()
    if target.is_absolute():
        return None
    return Path(os.path.normpath(os.path.realpath(link.parent) / target))
