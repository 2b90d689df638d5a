"""The folder of an index during writing: valid on disk at every moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dsd_trt.bundle.folder import file_entry
from dsd_trt.errors import DsdError, InputError
from dsd_trt.files.lock import own_folder
from dsd_trt.files.unfinished import is_unfinished
from dsd_trt.files.whole import write_whole
from dsd_trt.index.files import (
    INDEX_NAME,
    NEXT_TABLE,
    NOT_FINITE,
    TABLE_NAME,
    Entry,
    IndexManifest,
    LatentSource,
    Shard,
    entry_of,
    finite_latents,
    is_index,
    read_manifest,
    read_table,
    require_extra,
    shard_content,
    shard_name,
    shard_number,
    table_content,
    to_entries,
)
from dsd_trt.log import get_logger

logger = get_logger(__name__)

_GOES_ON = (
    "What was finished is kept: make room, or move the index to another disk, and the same command "
    "goes on from there"
)


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes an index.

    Raises:
        InputError: the folder is not an index, or another process writes it.
        DsdError: the folder cannot be written to.
    """
    if not is_index(folder):
        _require_free(folder)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(own_folder(folder))
        except OSError as error:
            raise DsdError(f"cannot write to {folder}: {error.strerror}") from error
        yield


class IndexFolder:
    """Shards of latents, and the table that maps images to latents.

    Args:
        folder: folder of the index; need not exist yet.
        image_encoder: source of the latents.
    """

    def __init__(self, folder: Path, image_encoder: LatentSource) -> None:
        self._folder, self._image_encoder = folder, image_encoder
        self._shards: dict[str, Shard] = {}

    def read(self) -> list[Entry]:
        """Read an existing index to extend, or start an empty one.

        Leftovers of an interruption are removed. A damaged shard is dropped with a logged warning.

        Raises:
            InputError: the folder holds something else, an index of another image encoder, or a
                damaged table.
            MissingExtraError: the packages that write an index are not installed.
            DsdError: the folder cannot be written to.
        """
        require_extra()
        entries = self._open() if is_index(self._folder) else self._make()
        for path in self._folder.iterdir():
            left_behind = shard_number(path.name) >= 0 and path.name not in self._shards
            if (left_behind or is_unfinished(path)) and not path.is_dir():
                path.unlink()
        return entries

    def add_shard(self, latents: Sequence[NDArray[Any]], engine: str) -> str:
        """Write latents to a new file; the index includes it from the next `commit` on.

        Returns:
            Name of the new file.
        """
        name = shard_name(max(map(shard_number, self._shards), default=-1) + 1)
        content = shard_content(latents)
        self._write(name, content)
        file = entry_of(content)
        self._shards[name] = Shard(len(latents), engine, file.sha256, file.size)
        return name

    def commit(self, entries: Iterable[Entry]) -> None:
        """Replace the images of the index.

        The replacement of `index.json` is the moment of change. Before it, the old table has its
        own name. After it, the new table is found under its own name or as `NEXT_TABLE`.

        Raises:
            DsdError: the disk is full or cannot be written to; the index is unchanged.
        """
        table = table_content(entries)
        self._write(NEXT_TABLE, table)
        manifest = IndexManifest(self._image_encoder, entry_of(table), self._shards)
        self._write(INDEX_NAME, manifest.to_json().encode())
        self._finish_commit()

    def commit_last(self, entries: Iterable[Entry]) -> None:
        """Like `commit`; also removes shards without an image."""
        entries = list(entries)
        used = {entry.shard for entry in entries}
        unused = self._shards.keys() - used
        self._shards = {name: shard for name, shard in self._shards.items() if name in used}
        self.commit(entries)
        for name in unused:
            (self._folder / name).unlink(missing_ok=True)

    def _make(self) -> list[Entry]:
        _require_free(self._folder)
        with _writing_to(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self.commit([])
        return []

    def _open(self) -> list[Entry]:
        manifest = read_manifest(self._folder)
        if manifest.image_encoder != self._image_encoder:
            raise InputError(
                f"{self._folder} is an index of another image encoder than this bundle's. Name "
                "another folder, or remove this one first"
            )
        entries = to_entries(read_table(self._folder, manifest))
        unfinished = self._folder / NEXT_TABLE
        if unfinished.is_file() and file_entry(unfinished) == manifest.table:
            self._finish_commit()  # before a new file takes its name
        self._shards = dict(manifest.shards)
        for name, shard in manifest.shards.items():
            if complaint := shard.complaint(self._folder / name, manifest.image_encoder.latent):
                logger.warning("%s: its images are encoded again", complaint)
                del self._shards[name]
        if len(self._shards) < len(manifest.shards):
            entries = self._without_lost(entries)
            self.commit(entries)
        return self._without_unusable(entries)

    def _without_lost(self, entries: Sequence[Entry]) -> list[Entry]:
        """Drop images whose shard is gone; everything else in their files is read again."""
        lost = {it.name: it.file for it in entries if it.shard and it.shard not in self._shards}
        again = set(lost.values())
        return [
            replace(it, mtime_ns=None) if it.file in again else it
            for it in entries
            if it.name not in lost
        ]

    def _without_unusable(self, entries: Sequence[Entry]) -> list[Entry]:
        """Drop latents that are not finite, so that their images are encoded again."""
        finite = {name: finite_latents(self._folder / name) for name in self._shards}
        return [
            it
            if it.shard is None or it.row is None or finite[it.shard][it.row]
            else replace(it, shard=None, row=None, error=NOT_FINITE)
            for it in entries
        ]

    def _finish_commit(self) -> None:
        with _writing_to(self._folder):
            (self._folder / NEXT_TABLE).replace(self._folder / TABLE_NAME)

    def _write(self, name: str, content: bytes) -> None:
        with _writing_to(self._folder):
            write_whole(self._folder / name, content)


def _require_free(folder: Path) -> None:
    if folder.exists() and not _is_empty(folder):
        raise InputError(
            f"{folder} exists and is not an index. Name a new folder last: dsd-trt index IMAGES OUT"
        )


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but leftovers of an interruption."""
    return folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DsdError(f"cannot write to {folder}: {error.strerror}. {_GOES_ON}") from error
    except DsdError as error:
        raise DsdError(f"{error}. {_GOES_ON}") from error
