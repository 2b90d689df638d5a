"""Making and updating an index, one shard at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.arguments import checked_flag, checked_path, checked_progress, described
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.engine import EngineDescription
from dsd_trt.engine.choice import Choice, open_first, require_possible
from dsd_trt.errors import InputError
from dsd_trt.image.decoding import decoded_in_order, images_ahead
from dsd_trt.image.files import printable
from dsd_trt.index.files import Entry, LatentSource, require_extra
from dsd_trt.index.folder import IndexFolder, one_writer
from dsd_trt.index.reading import Found, Read, members, read, status
from dsd_trt.index.tar_names import is_tar
from dsd_trt.log import get_logger
from dsd_trt.mode import choose_mode
from dsd_trt.pipeline import Pipeline
from dsd_trt.results import Failure, Progress
from dsd_trt.signature import open_bundle
from dsd_trt.spans import span

logger = get_logger(__name__)


@dataclass(frozen=True)
class IndexUpdate:
    """Result of an index update.

    Attributes:
        images: number of images in the index, including those with errors.
        encoded: number of images encoded by this update.
        dropped: number of images removed by this update.
        engine: description of the engine that encoded them; None if nothing was encoded.
        errors: images that cannot be read, with reasons.
        kept: number of images that stay in the index though they were not given again.
        why_engine: with engine "auto": why faster engines were passed over; empty if it was named.
    """

    images: int
    encoded: int
    dropped: int
    engine: EngineDescription | None
    errors: tuple[Failure, ...]
    kept: int = 0
    why_engine: str = ""


def update_index(
    folder: str | os.PathLike[str],
    images: Iterable[str | os.PathLike[str]],
    bundle: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    shard_size: int = 1024,
    keep: bool = True,
    progress: Progress | None = None,
    require_signature: str | os.PathLike[str] | None = None,
    self_check: bool = True,
    device: int = 0,
    threads: int | None = None,
    memory_budget_mb: float | None = None,
    cache_compiled: bool = False,
) -> IndexUpdate:
    """Add images to an index, encoding those it does not have yet.

    An image file or tar file with unchanged size and modification time is not read again. An image
    is encoded only if the index has none with the same bytes, under any name. After an
    interruption, the index has all finished shards; another call continues from there.

    Args:
        folder: folder of the index, created if missing.
        images: image files, and WebDataset tar files by suffix. Results keep this order.
        bundle: bundle whose image encoder is used, as for `Scorer.load`.
        engine: name of the backend, as for `Scorer`.
        shard_size: number of latents per file.
        keep: whether images of the index that are not among `images` stay. Otherwise they are
            removed at the end, and their number is logged as a warning at the start.
        progress: callback `(done, total)`, in images; `total` is None when unknown.
        require_signature: path of a public key, as for `Scorer.load`.
        self_check: whether graphs must reproduce stored reference outputs, as for `Scorer`.
        device: number of the GPU to compute on, as for `Scorer`.
        threads: number of threads to compute with, as for `Scorer`.
        memory_budget_mb: memory for activations, in MiB, as for `Scorer`.
        cache_compiled: whether compiled models of large bundles are kept, as for `Scorer`.

    Raises:
        InputError: the folder is something else or an index of another image encoder, another
            process writes it, or an argument is of another type.
        BundleError: the bundle cannot be opened, as for `Scorer.load`.
        EngineError: the engine cannot be used, as for `Scorer`.
        DisagreementError: BF16 was requested, and changes the winner too often with the bundle.
        MissingExtraError: the packages that write an index are not installed.
        DsdError: the disk is full or cannot be written to.
    """
    require_extra()  # before a library is loaded
    folder = checked_path(folder, "the folder of an index")
    if isinstance(images, (str, bytes, os.PathLike)) or not isinstance(images, Iterable):
        raise InputError(f"images must be a list of paths, got {described(images)}")
    files = [checked_path(it, f"images[{place}]") for place, it in enumerate(images)]
    if not isinstance(shard_size, int) or isinstance(shard_size, bool) or shard_size < 1:
        raise InputError(f"shard_size must be a whole number above 0, got {described(shard_size)}")
    keep, progress = checked_flag(keep, "keep"), checked_progress(progress)
    self_check = checked_flag(self_check, "self_check")
    cache_compiled = checked_flag(cache_compiled, "cache_compiled")
    require_possible(engine, device, threads)
    opened = open_bundle(bundle_folder(bundle), require_signature)

    def attempt(choice: Choice) -> tuple[Pipeline, str]:
        backend = replace(choice.backend, cache_compiled=cache_compiled)
        pipeline = Pipeline(opened, backend, memory_budget_mb, self_check=self_check)
        _ = pipeline.image_encoder  # compiles it, so that another engine is tried if this one fails
        return pipeline, choice.reason

    pipeline, reason = open_first(engine, device, opened, ("image_encoder",), attempt, threads)
    backend = pipeline.backend
    if backend.keeps_order_of:
        from dsd_trt.bfloat16 import require_agreement  # imports a renderer, needed by BF16 alone

        mode = choose_mode(opened.manifest, "auto", backend)
        # In a separate pipeline: the U-Net compiled for comparison is not kept while indexing.
        compared = Pipeline(opened, backend, memory_budget_mb, self_check=self_check)
        require_agreement(opened, mode, compared, memory_budget_mb)
        del compared
    total = None if any(map(is_tar, files)) else len(files)
    with one_writer(folder):
        writer = IndexWriter(
            folder,
            opened.manifest,
            pipeline,
            shard_size,
            lambda done: progress(done, total) if progress else None,
        )
        if not keep:
            writer.announce_dropped(files)
        writer.add(files)
        return replace(writer.finish(keep), why_engine=reason)


class IndexWriter:
    """An index that is being written; it is valid on disk after every shard.

    Args:
        folder: folder of the index.
        manifest: manifest of the bundle.
        pipeline: pipeline that encodes images, in the same batches as for scoring.
        shard_size: number of latents per file.
        done: callback with the number of images just added.

    Raises:
        InputError, MissingExtraError: the folder cannot be used, as for `update_index`.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        pipeline: Pipeline,
        shard_size: int,
        done: Callable[[int], None],
    ) -> None:
        self._preprocessing, self._pipeline = manifest.preprocessing, pipeline
        self._shard_size, self._done = shard_size, done
        self._path, self._folder = folder, IndexFolder(folder, LatentSource.of(manifest))
        entries = self._folder.read()
        self._entries = {entry.name: entry for entry in entries}
        self._latents = {it.sha256: it for it in entries if it.shard is not None and it.sha256}
        self._of_file: dict[str, list[Entry]] = {}
        for entry in entries:
            self._of_file.setdefault(entry.file, []).append(entry)
        self._files: set[str] = set()  # names of images added
        self._unread: set[str] = set()  # tar files among them that could not be read at all
        self._named: dict[str, int | None] = {}  # modification time of each image's file
        self._batch: list[tuple[Entry, NDArray[np.uint8]]] = []  # batch to encode
        self._encoded: list[tuple[Entry, NDArray[Any]]] = []  # latents for the next shard
        self._count = 0  # encoded

    def announce_dropped(self, files: Iterable[Path]) -> None:
        """Log the number of images that would be removed if only these files were added."""
        named = {printable(str(file)) for file in files}
        missing = sum(entry.file not in named for entry in self._entries.values())
        if missing:
            logger.warning(
                "%d of %d images of %s are not among those given, and will be removed",
                missing,
                len(self._entries),
                self._path,
            )

    def add(self, files: Iterable[Path]) -> None:
        """Add image files, and the images of tar files, decoded ahead by several threads."""
        ahead = images_ahead(self._pipeline.batch.images)
        for it, content in decoded_in_order(self._decoded, self._found(files), ahead, self._held):
            if it.known is not None:
                self._named.update((name, it.mtime) for name in it.known)
            else:
                if it.unread:
                    self._unread.add(it.path)
                self._named[it.name] = it.mtime
                # If stopped within a tar, the index must not treat it as read completely.
                whole = None if is_tar(it.file) else it.mtime
                self._add(Entry(it.name, it.path, it.size, whole), content)
            self._done(len(self._named))

    def _found(self, files: Iterable[Path]) -> Iterator[Found]:
        """Images of the files, each file once; one that is unchanged is not read again."""
        for file in files:
            path = printable(str(file))
            if path in self._files:
                continue
            self._files.add(path)
            size, mtime = status(file)
            known = self._of_file.get(path, [])
            unchanged = all((it.size, it.mtime_ns, it.error) == (size, mtime, None) for it in known)
            one = Found(file, path, path, size, mtime)
            if known and unchanged:
                yield replace(one, known=tuple(it.name for it in known))
            elif is_tar(file):
                for name, content in members(file):
                    unread = name == str(file)
                    yield replace(one, name=printable(name), content=content, unread=unread)
            else:
                yield one

    def _decoded(self, found: Found) -> Read:
        """Hash and pixels of an image; called in other threads."""
        return read(found, self._preprocessing, self._latents)

    def _held(self, found: Found) -> int:
        """Number of bytes of an image that waits, with its pixels."""
        return found.held_bytes() + 3 * self._preprocessing.resolution**2

    def finish(self, keep: bool) -> IndexUpdate:
        """Write the remaining latents, and remove images that were not added again unless kept."""
        self._encode()
        self._write_shards(1)
        before = self._entries
        self._entries = {
            name: replace(before[name], mtime_ns=mtime) for name, mtime in self._named.items()
        }
        # Images of a tar that is unreadable now may still exist.
        self._entries |= {
            name: replace(it, mtime_ns=None) if it.file in self._unread else it
            for name, it in before.items()
            if name not in self._named
            and (it.file in self._unread or (keep and it.file not in self._files))
        }
        with span("write"):
            self._folder.commit_last(self._entries.values())
        return IndexUpdate(
            len(self._entries),
            self._count,
            len(before) - len(self._entries),
            self._pipeline.image_encoder if self._count else None,
            tuple(Failure(it.name, it.error) for it in self._entries.values() if it.error),
            sum(it.file not in self._files for it in self._entries.values()),
        )

    def _add(self, entry: Entry, content: Read) -> None:
        entry = replace(entry, sha256=content.sha256)
        if content.sha256 is not None and (twin := self._latents.get(content.sha256)) is not None:
            self._entries[entry.name] = replace(entry, shard=twin.shard, row=twin.row)
            return
        if content.pixels is None:
            self._entries[entry.name] = replace(entry, error=content.error)
            return
        self._batch.append((entry, content.pixels))
        # A latent's last bits depend on the batch. Batches end with their shard, so they are the
        # same whether earlier images were encoded now or by a run that was stopped.
        room = self._shard_size - len(self._encoded)
        if len(self._batch) == min(self._pipeline.batch.images, room):
            self._encode()
            self._write_shards(self._shard_size)

    def _encode(self) -> None:
        """Encode a batch of readable images, in the same way as for scoring."""
        pixels = [it for _, it in self._batch]
        latents = self._pipeline.encode_images(pixels) if pixels else ()
        for (entry, _), latent in zip(self._batch, latents, strict=True):
            if np.isfinite(latent).all():
                self._encoded.append((entry, latent))
                self._count += 1
            else:
                complaint = self._pipeline.complaint("image_encoder", "a latent")
                self._entries[entry.name] = replace(entry, error=complaint)
        self._batch.clear()

    def _write_shards(self, at_least: int) -> None:
        """Write shards while there are enough latents."""
        while len(self._encoded) >= at_least:
            chunk = self._encoded[: self._shard_size]
            del self._encoded[: self._shard_size]
            with span("write", latents=len(chunk)):
                self._write_shard(chunk)

    def _write_shard(self, chunk: Sequence[tuple[Entry, NDArray[Any]]]) -> None:
        latents = [latent for _, latent in chunk]
        shard = self._folder.add_shard(latents, str(self._pipeline.image_encoder))
        logger.info("wrote %d latents to %s", len(chunk), self._path)
        for row, (entry, _) in enumerate(chunk):
            placed = replace(entry, shard=shard, row=row)
            self._entries[entry.name] = placed
            if entry.sha256 is not None:
                self._latents[entry.sha256] = placed
        self._folder.commit(self._entries.values())
