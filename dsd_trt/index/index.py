"""An index: latents of images on disk, so that new texts need neither decoding nor the VAE.

A folder with `index.json`, which vouches for everything else by hash; `images.parquet`, a row an
image; and shards of latents, `latents-00000.safetensors` and so on. `update_index` makes one.
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

from dsd_trt.bundle.manifest import Manifest
from dsd_trt.errors import ImageError, InputError
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

_OPEN_SHARDS = 8  # mapped at a time: images that were added later lie scattered
_AGAIN = "To make it whole, index again: dsd-trt index IMAGES"


@dataclass(frozen=True)
class IndexedImage:
    """One image of an index; `Scorer` takes it wherever it takes an image."""

    index: Index
    entry: Entry

    @property
    def name(self) -> str:
        """What results call it."""
        return self.entry.name

    def latent(self) -> NDArray[Any]:
        """Its latent z, (C, h, w).

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
    """The images of an index, in the order they were given in; latents stay on disk till needed.

    `Index.open` opens one. It is of the moment it was opened in: where another process takes
    latents away afterwards, or puts others in their place, their images have an error.

    Attributes:
        folder: where it lies.
        manifest: what it says about itself.
    """

    def __init__(self, folder: Path, manifest: IndexManifest, table: Any) -> None:
        self.folder, self.manifest, self._table = folder, manifest, table
        self._shard = functools.lru_cache(_OPEN_SHARDS)(self._map_shard)
        self._identities: Mapping[str, object] = {}  # of the shards that were verified

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Index:
        """Open an index and verify it whole: schema, hash of every file, shape and type of latents.

        Raises:
            InputError: no index there, or anything in it is not as `index.json` says.
            MissingExtraError: the packages that read one are not installed.
        """
        if not isinstance(folder, (str, os.PathLike)):
            raise InputError(f"an index is named by a path or a string, got {folder!r}")
        folder = Path(folder)
        while True:
            # Not what it says: another process may have changed it and changed it back.
            before = _identity(folder / INDEX_NAME)
            manifest = read_manifest(folder)
            try:
                return cls._verified(folder, manifest)
            except InputError:
                if _identity(folder / INDEX_NAME) == before:
                    raise
                # Another process has brought it up to date meanwhile.

    @classmethod
    def _verified(cls, folder: Path, manifest: IndexManifest) -> Index:
        index = cls(folder, manifest, read_table(folder, manifest))
        index._identities = {name: _identity(folder / name) for name in manifest.shards}
        for name, shard in manifest.shards.items():
            if complaint := shard.complaint(folder / name, manifest.image_encoder.latent):
                raise InputError(f"{complaint}. {_AGAIN} {folder}")
        return index

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
        """The image of a name.

        Raises:
            InputError: there is none.
        """
        if (place := self._places.get(name)) is None:
            raise InputError(f"{self.folder} has no image {name!r}")
        return self[place]

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._table["name"].to_pylist())}

    def require(self, manifest: Manifest) -> None:
        """Refuse a bundle whose image encoder the latents are not of.

        Raises:
            InputError: says how to make an index that fits.
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
            ImageError: the shard is no longer the file that was verified.
        """
        latent: NDArray[Any] = self._shard(shard)[row : row + 1][0]
        return latent

    def _map_shard(self, name: str) -> Any:
        from safetensors import safe_open

        path = self.folder / name
        try:
            shard: Any = safe_open(path, framework="numpy").get_slice(LATENT)
        except Exception:  # the library's, for what is gone or something else
            shard = None
        # Names of shards are given again: what was mapped has to be what was verified.
        if shard is None or _identity(path) != self._identities[name]:
            raise ImageError(f"{path} was changed after the index was opened. Open the index again")
        return shard


def _identity(path: Path) -> object:
    """What tells a file from another of its name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
