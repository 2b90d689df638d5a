"""Making an index and keeping it up to date, a shard at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.folder import bundle_folder
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.engine import EngineDescription, require_backend
from dsd_trt.errors import ImageError
from dsd_trt.files.regular import read_regular
from dsd_trt.image.files import printable
from dsd_trt.image.preprocess import preprocess
from dsd_trt.index.files import Entry, LatentSource, require_extra
from dsd_trt.index.folder import IndexFolder, one_writer
from dsd_trt.index.webdataset import is_tar, tar_images
from dsd_trt.limits import IMAGE_BYTES
from dsd_trt.mode import choose_mode
from dsd_trt.pipeline import Pipeline
from dsd_trt.results import Failure, Progress
from dsd_trt.signature import open_bundle

_MEMORY_MB = 1024  # for activations, as `Scorer` allows them


@dataclass(frozen=True)
class IndexUpdate:
    """What became of an index.

    Attributes:
        images: how many it has now, those with errors included.
        encoded: how many of them were encoded just now.
        dropped: how many it has no more.
        engine: that encoded them; None where nothing had to be.
        errors: images that cannot be read, and why.
    """

    images: int
    encoded: int
    dropped: int
    engine: EngineDescription | None
    errors: tuple[Failure, ...]


def update_index(
    folder: str | os.PathLike[str],
    images: Iterable[str | os.PathLike[str]],
    bundle: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    shard_size: int = 1024,
    keep: bool = False,
    progress: Progress | None = None,
    require_signature: str | os.PathLike[str] | None = None,
    self_check: bool = True,
) -> IndexUpdate:
    """Make an index hold images, encoding those that it does not hold yet.

    An image file or a tar whose size and time of change are as before is not read again. What was
    read is encoded only where the index has no image of the same bytes, whatever its name.
    Interrupted, it leaves an index of the shards that were finished, and goes on from there when it
    is called again.

    Args:
        folder: the index, which is made unless it exists.
        images: image files, and WebDataset's tar files by their ending. Results keep this order.
        bundle: whose image encoder to use, as for `Scorer.load`.
        engine: as for `Scorer.load`.
        shard_size: latents a file.
        keep: leave in the index what it has beside these images; otherwise that is dropped.
        progress: told, as images are done, how many are, and of how many where that is known.
        require_signature: as for `Scorer.load`.
        self_check: as for `Scorer`.

    Raises:
        InputError: the folder is something else, or an index of another image encoder, or another
            process writes it.
        BundleError: as for `Scorer.load`.
        EngineError: as for `Scorer.load`.
        DisagreementError: the bundle's scores change their order in BF16, which was asked for.
        MissingExtraError: the packages that write an index are not installed.
        DsdError: the disk is full, or the like.
    """
    require_extra()  # before a library is loaded
    backend = require_backend(engine)
    opened = open_bundle(bundle_folder(bundle), require_signature)
    if backend.keeps_order_of:
        from dsd_trt.bfloat16 import require_agreement  # draws; no other engine waits for that

        mode = choose_mode(opened.manifest, "auto", backend)
        # In a pipeline of its own: a U-Net compiled to compare is not kept while indexing.
        compared = Pipeline(opened, backend, _MEMORY_MB, self_check=self_check)
        require_agreement(opened, mode, compared, _MEMORY_MB)
        del compared
    pipeline = Pipeline(opened, backend, _MEMORY_MB, self_check=self_check)
    files = [Path(image) for image in images]
    total = None if any(map(is_tar, files)) else len(files)
    with one_writer(Path(folder)):
        writer = IndexWriter(
            Path(folder),
            opened.manifest,
            pipeline,
            shard_size,
            lambda done: progress(done, total) if progress else None,
        )
        for file in files:
            writer.add(file)
        return writer.finish(keep)


class IndexWriter:
    """An index that is being written; on disk it is whole after every shard.

    Args:
        folder: of the index.
        manifest: of the bundle.
        pipeline: encodes images, in batches of the size that scoring has.
        shard_size: latents a file.
        done: told how many images were added.

    Raises:
        InputError, MissingExtraError: as for `update_index`.
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
        self._folder = IndexFolder(folder, LatentSource.of(manifest))
        entries = self._folder.read()
        self._entries = {entry.name: entry for entry in entries}
        self._latents = {it.sha256: it for it in entries if it.shard is not None}
        self._of_file: dict[str, list[Entry]] = {}
        for entry in entries:
            self._of_file.setdefault(entry.file, []).append(entry)
        self._files: set[str] = set()  # that were added
        self._unread: set[str] = set()  # of them, tars that could not be read at all this time
        self._named: dict[str, int | None] = {}  # images of them: when the file was last changed
        self._batch: list[tuple[Entry, NDArray[np.uint8]]] = []  # to be encoded together
        self._encoded: list[tuple[Entry, NDArray[Any]]] = []  # to be written together
        self._count = 0  # encoded

    def add(self, file: Path) -> None:
        """Take in an image file, or what a tar file holds."""
        path = printable(str(file))
        if path in self._files:
            return
        self._files.add(path)
        size, mtime = _status(file)
        known = self._of_file.get(path, [])
        if known and all((it.size, it.mtime_ns, it.error) == (size, mtime, None) for it in known):
            self._named.update((it.name, mtime) for it in known)
            self._done(len(self._named))
            return
        # Stopped within a tar, the index must not take it for one that was read to its end.
        read_to_the_end = None if is_tar(file) else mtime
        for name, content in _read(file):
            if is_tar(file) and name == str(file):
                self._unread.add(path)
            self._named[name := printable(name)] = mtime
            self._add(Entry(name, path, size, read_to_the_end), content)
            self._done(len(self._named))

    def finish(self, keep: bool) -> IndexUpdate:
        """Write what is left, and drop what was not added again unless it is to be kept."""
        self._encode()
        self._write_shards(1)
        before = self._entries
        self._entries = {
            name: replace(before[name], mtime_ns=mtime) for name, mtime in self._named.items()
        }
        # What a tar holds that cannot be read now is not known to be gone.
        self._entries |= {
            name: replace(it, mtime_ns=None) if it.file in self._unread else it
            for name, it in before.items()
            if name not in self._named
            and (it.file in self._unread or (keep and it.file not in self._files))
        }
        self._folder.commit_last(self._entries.values())
        return IndexUpdate(
            len(self._entries),
            self._count,
            len(before) - len(self._entries),
            self._pipeline.image_encoder if self._count else None,
            tuple(Failure(it.name, it.error) for it in self._entries.values() if it.error),
        )

    def _add(self, entry: Entry, content: bytes | ImageError) -> None:
        if isinstance(content, bytes):
            entry = replace(entry, sha256=hashlib.sha256(content).hexdigest())
            if (twin := self._latents.get(entry.sha256)) is not None:
                self._entries[entry.name] = replace(entry, shard=twin.shard, row=twin.row)
                return
        to = self._preprocessing
        try:
            if isinstance(content, ImageError):
                raise content
            pixels = preprocess(content, to.resolution, to.resize)
        except ImageError as error:
            self._entries[entry.name] = replace(entry, error=str(error))
            return
        self._batch.append((entry, pixels))
        # A latent's last bits depend on the batch. One that ends with its shard is composed alike
        # whether images before it were encoded just now or by a run that was stopped.
        room = self._shard_size - len(self._encoded)
        if len(self._batch) == min(self._pipeline.batch.images, room):
            self._encode()
            self._write_shards(self._shard_size)

    def _encode(self) -> None:
        """Encode a batch of images that can be read, as scoring encodes them."""
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
        """Write shards while there is enough for one."""
        while len(self._encoded) >= at_least:
            chunk = self._encoded[: self._shard_size]
            del self._encoded[: self._shard_size]
            latents = [latent for _, latent in chunk]
            shard = self._folder.add_shard(latents, str(self._pipeline.image_encoder))
            for row, (entry, _) in enumerate(chunk):
                placed = replace(entry, shard=shard, row=row)
                self._entries[entry.name] = self._latents[entry.sha256] = placed
            self._folder.commit(self._entries.values())


def _read(file: Path) -> Iterator[tuple[str, bytes | ImageError]]:
    """Names and contents of the images of a file; what cannot be read goes by the file's name."""
    try:
        if not is_tar(file):
            yield str(file), read_regular(file, IMAGE_BYTES)
            return
        for name, content in tar_images(file):
            yield f"{file}/{name}" if name else str(file), content
    except OSError as error:
        yield str(file), ImageError(error.strerror or str(error))


def _status(file: Path) -> tuple[int | None, int | None]:
    """Size and time of change; reading the file will tell why there are none."""
    try:
        status = file.stat()
    except OSError:
        return None, None
    return status.st_size, status.st_mtime_ns
