"""An index: latents of images on disk, so that scoring new texts skips decoding and VAE.

A folder with three kinds of files: `index.json`, which has the hash of all others;
`images.parquet`, one row per image; and shards of latents, `latents-00000.safetensors` and so on.
`update_index` makes one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dsd_trt.arguments import checked_path
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.errors import ImageError, InputError, counted
from dsd_trt.index.files import (
    INDEX_NAME,
    LATENT,
    NOT_FINITE,
    Entry,
    IndexManifest,
    LatentSource,
    read_manifest,
    read_table,
    to_entries,
)

_OPEN_SHARDS = 8  # shards mapped at a time: images added later lie scattered
_AGAIN = "To make it whole, index again: dsd-trt index IMAGES"


@dataclass(frozen=True)
class IndexedImage:
    """One image of an index; `Scorer` accepts it wherever it accepts an image."""

    index: Index
    entry: Entry

    def __repr__(self) -> str:
        return f"IndexedImage({self.name!r} of {str(self.index.folder)!r})"

    @property
    def name(self) -> str:
        """Name of the image in results."""
        return self.entry.name

    def latent(self) -> NDArray[Any]:
        """Latent z of the image, (C, h, w).

        Raises:
            ImageError: the image could not be read when it was indexed, or its latent is not
                finite; the message is the reason.
        """
        if self.entry.shard is None or self.entry.row is None:
            raise ImageError(self.entry.error or "it has no latent")
        latent = self.index.read_latent(self.entry.shard, self.entry.row)
        if not np.isfinite(latent).all():
            raise ImageError(
                f"{NOT_FINITE}. Encode it again: dsd-trt index IMAGES {self.index.folder}"
            )
        return latent


class Index(Sequence[IndexedImage]):
    """The images of an index in their given order; latents stay on disk until needed.

    Open one with `Index.open`. It reflects the moment of opening: if another process later removes
    or replaces latents, their images get an error.

    Attributes:
        folder: folder of the index.
        manifest: parsed and verified content of `index.json`.
    """

    def __init__(self, folder: Path, manifest: IndexManifest, table: Any) -> None:
        self.folder: Path = folder
        self.manifest: IndexManifest = manifest
        self._table = table
        self._shard = functools.lru_cache(_OPEN_SHARDS)(self._map_shard)
        self._identities: Mapping[str, object] = {}  # identities of the verified shards

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Index:
        """Open an index and verify it: schema, hash of every file, shape and type of latents.

        Raises:
            InputError: there is no index, or something in it differs from `index.json`.
            MissingExtraError: the packages that read an index are not installed.
        """
        folder = checked_path(folder, "the folder of an index")
        while True:
            # Compare identities, not content: a process may have changed it and changed it back.
            before = _identity(folder / INDEX_NAME)
            manifest = read_manifest(folder)
            try:
                return cls._verified(folder, manifest)
            except InputError:
                if _identity(folder / INDEX_NAME) == before:
                    raise
                # Another process has updated it meanwhile.

    @classmethod
    def _verified(cls, folder: Path, manifest: IndexManifest) -> Index:
        index = cls(folder, manifest, read_table(folder, manifest))
        index._identities = {name: _identity(folder / name) for name in manifest.shards}
        for name, shard in manifest.shards.items():
            if complaint := shard.complaint(folder / name, manifest.image_encoder.latent):
                raise InputError(f"{complaint}. {_AGAIN} {folder}")
        return index

    def __repr__(self) -> str:
        size = counted(len(self), "image")
        latent = self.manifest.image_encoder.latent
        shape = " x ".join(map(str, latent.shape[1:]))
        return f"Index({str(self.folder)!r}: {size}, latents {latent.dtype} {shape})"

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, at: int) -> IndexedImage: ...
    @overload
    def __getitem__(self, at: slice) -> list[IndexedImage]: ...
    def __getitem__(self, at: int | slice) -> IndexedImage | list[IndexedImage]:
        places = range(len(self))[at]
        if isinstance(places, range):
            return [self[place] for place in places]
        (entry,) = to_entries(self._table.slice(places, 1))
        return IndexedImage(self, entry)

    def find(self, name: str) -> IndexedImage:
        """The image with a given name.

        Raises:
            InputError: there is no image of this name.
        """
        if (place := self._places.get(name)) is None:
            raise InputError(f"{self.folder} has no image {name!r}")
        return self[place]

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._table["name"].to_pylist())}

    def require(self, manifest: Manifest) -> None:
        """Refuse a bundle with another image encoder than the latents'.

        Raises:
            InputError: the image encoder differs; the message says how to make a fitting index.
        """
        if LatentSource.of(manifest) != self.manifest.image_encoder:
            raise InputError(
                f"{self.folder} has latents of another image encoder than this bundle's. Score "
                "with the bundle they were made with, or index the images with this one, into "
                "another folder: dsd-trt index IMAGES OUT --bundle BUNDLE"
            )

    def read_latent(self, shard: str, row: int) -> NDArray[Any]:
        """Copy one latent from a shard, (C, h, w).

        Raises:
            ImageError: the shard is no longer the verified file.
        """
        latent: NDArray[Any] = self._shard(shard)[row : row + 1][0]
        return latent

    def _map_shard(self, name: str) -> Any:
        from safetensors import safe_open

        path = self.folder / name
        try:
            shard: Any = safe_open(path, framework="numpy").get_slice(LATENT)
        except Exception:  # raised by the library for a missing or different file
            shard = None
        # Shard names are reused: the mapped file must be the verified one.
        if shard is None or _identity(path) != self._identities[name]:
            raise ImageError(f"{path} was changed after the index was opened. Open the index again")
        return shard


def _identity(path: Path) -> object:
    """Identity of a file, to detect its replacement; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
