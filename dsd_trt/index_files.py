"""Files of an index: `index.json`, the table of images, and shards of latents."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle import file_entry
from dsd_trt.contract import TensorSpec
from dsd_trt.errors import InputError, MissingExtraError
from dsd_trt.manifest import FileEntry, Manifest, Preprocessing
from dsd_trt.plan import graph_hash
from dsd_trt.schema import SchemaError, from_plain, parse_json, to_plain

SCHEMA_VERSION = 1
INDEX_NAME, TABLE_NAME = "index.json", "images.parquet"
NEXT_TABLE = f".{TABLE_NAME}.part"
"""The table that `index.json` speaks of, where a writer was stopped before it was renamed."""
_SHARD_NAME = re.compile(r"latents-(\d{5,})\.safetensors")
LATENT = "latent"  # the one tensor of a shard, (rows, C, h, w)
NOT_FINITE = "its latent in the index has NaN or infinity"


@dataclass(frozen=True)
class ImageEncoder:
    """What a latent depends on beside its image; equal where latents can be exchanged.

    Attributes:
        graph_hash: of the bundle's image encoder and of the bundle's weights.
        preprocessing: what happens to an image before.
        latent: the graph's output.
    """

    graph_hash: str
    preprocessing: Preprocessing
    latent: TensorSpec

    @classmethod
    def of(cls, manifest: Manifest) -> ImageEncoder:
        """The image encoder of a bundle."""
        graph = manifest.graphs["image_encoder"]
        return cls(graph_hash(manifest, "image_encoder"), manifest.preprocessing, graph.outputs[0])


@dataclass(frozen=True)
class Shard:
    """What `index.json` says of a file of latents.

    Attributes:
        rows: how many latents it has.
        engine: that computed them.
        sha256: of the file.
        size: of the file, in bytes.
    """

    rows: int
    engine: str
    sha256: str
    size: int

    def complaint(self, path: Path) -> str | None:
        """What is wrong with the file, if anything."""
        if not path.is_file():
            return f"{path} is missing"
        if file_entry(path) != FileEntry(self.sha256, self.size):
            return f"{path} was altered (sha256 differs)"
        return None


@dataclass(frozen=True)
class IndexManifest:
    """All of `index.json`.

    Attributes:
        image_encoder: that the latents are of.
        table: `images.parquet`.
        shards: by file name.
    """

    image_encoder: ImageEncoder
    table: FileEntry
    shards: Mapping[str, Shard] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The text of `index.json`."""
        plain = to_plain(self)
        return json.dumps({"schema_version": plain.pop("schema_version"), **plain}, indent=2) + "\n"


@dataclass(frozen=True)
class Entry:
    """A row of `images.parquet`.

    Attributes:
        name: the image's path as the command was given it; in a tar file, the tar's path and the
            sample's key.
        file: the file it was read from: its own, or the tar.
        size: of that file, in bytes.
        mtime_ns: when that file was last changed; null if it has to be read again to know what is
            in it.
        sha256: of the image's bytes.
        shard: file its latent lies in; null where there is none.
        row: of the latent in the shard.
        error: why the image cannot be read; null if it can.
    """

    name: str
    file: str
    size: int | None
    mtime_ns: int | None
    sha256: str | None = None
    shard: str | None = None
    row: int | None = None
    error: str | None = None


def is_index(folder: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of an index."""
    return os.path.isfile(os.path.join(folder, INDEX_NAME))  # noqa: PTH113, PTH118 (odd names)


def read_manifest(folder: Path) -> IndexManifest:
    """Read `index.json`; no other file is looked at.

    Raises:
        InputError: there is none, or it is not one that this version can read.
        MissingExtraError: the packages that read one are not installed.
    """
    require_extra()
    path = folder / INDEX_NAME
    try:
        plain = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} is not an index: it has no {INDEX_NAME}. Make one with: dsd-trt index "
            f"IMAGES {folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(folder, f"{path} cannot be read: {error}") from None
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if version != SCHEMA_VERSION:
        raise _unreadable(
            folder,
            f"{path} has schema_version {version!r}; this dsd-trt reads {SCHEMA_VERSION}",
        )
    try:
        manifest = from_plain(IndexManifest, plain)
    except SchemaError as error:
        raise _unreadable(folder, f"{path}: {error}") from None
    for name in manifest.shards:
        if shard_number(name) < 0:  # it could lie anywhere
            raise _unreadable(folder, f"{path} names {name!r}, which is no shard")
    return manifest


def read_table(folder: Path, manifest: IndexManifest) -> Any:
    """Read `images.parquet`, verified, as an Arrow table.

    Raises:
        InputError: it is missing, altered, or names a latent that no shard has.
    """
    import pyarrow.parquet as parquet

    for path in (folder / TABLE_NAME, folder / NEXT_TABLE):
        if path.is_file() and file_entry(path) == manifest.table:
            table = parquet.read_table(BytesIO(path.read_bytes()))
            break
    else:
        raise _unreadable(folder, f"{folder / TABLE_NAME} is missing or was altered")
    if table.schema != table_schema():
        raise _unreadable(folder, f"{path} has other columns than an index's")
    for shard, row in zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True):
        if shard is not None and not (
            shard in manifest.shards and row is not None and 0 <= row < manifest.shards[shard].rows
        ):
            raise _unreadable(folder, f"{path} names row {row} of {shard}, which is not there")
    return table


def table_schema() -> Any:
    """Columns of `images.parquet`: the fields of `Entry`."""
    import pyarrow

    kinds = {"str": pyarrow.string(), "int": pyarrow.int64()}
    return pyarrow.schema(
        [(it.name, kinds[str(it.type).removesuffix(" | None")]) for it in fields(Entry)]
    )


def to_entries(table: Any) -> list[Entry]:
    """Rows of an Arrow table of images."""
    return [Entry(*row) for row in zip(*table.to_pydict().values(), strict=True)]


def table_content(entries: Iterable[Entry]) -> bytes:
    """Content of `images.parquet`."""
    import pyarrow
    import pyarrow.parquet as parquet

    entries, schema = list(entries), table_schema()
    columns = [
        pyarrow.array([getattr(entry, it.name) for entry in entries], it.type) for it in schema
    ]
    buffer = BytesIO()
    parquet.write_table(pyarrow.Table.from_arrays(columns, schema=schema), buffer)
    return buffer.getvalue()


def shard_content(latents: Sequence[NDArray[Any]]) -> bytes:
    """Content of a shard."""
    from safetensors.numpy import save

    return save({LATENT: np.stack(latents)})


def finite_latents(shard: Path) -> NDArray[np.bool_]:
    """Whether each latent of a shard is finite, (rows,)."""
    from safetensors import safe_open

    with safe_open(shard, framework="numpy") as opened:
        latents = opened.get_slice(LATENT)
        rows = range(latents.get_shape()[0])
        return np.array([np.isfinite(latents[row : row + 1]).all() for row in rows], np.bool_)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"latents-{number:05}.safetensors"


def shard_number(name: str) -> int:
    """Which shard it is, by its file's name."""
    match = _SHARD_NAME.fullmatch(name)
    return int(match[1]) if match else -1


def require_extra() -> None:
    """Fail now if the packages that read and write an index are not here.

    Raises:
        MissingExtraError: names the extra that installs them.
    """
    try:
        import pyarrow  # noqa: F401
        import safetensors  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"an index needs packages that are not installed here ({error}). "
            "Install them with: pip install 'dsd-trt[index]'"
        ) from error


def _unreadable(folder: Path, complaint: str) -> InputError:
    return InputError(
        f"{complaint}. Remove the folder and index again: dsd-trt index IMAGES {folder}"
    )
