"""Files of an index: `index.json`, the table of images, and shards of latents."""

from __future__ import annotations

import hashlib
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

from dsd_trt.bundle.contract import Dtype, TensorSpec
from dsd_trt.bundle.folder import file_entry
from dsd_trt.bundle.manifest import FileEntry, Manifest, Preprocessing
from dsd_trt.errors import InputError, MissingExtraError, counted, one_line
from dsd_trt.files.schema import SchemaError, from_plain, read_json, to_plain
from dsd_trt.files.tensor_file import read_tensor_headers
from dsd_trt.installation import install_command

SCHEMA_VERSION = 1
INDEX_NAME, TABLE_NAME = "index.json", "images.parquet"
NEXT_TABLE = f".{TABLE_NAME}.part"
"""Name of the new table from the replacement of `index.json` until it is renamed."""
_LARGEST = 2**20  # size of a latent or side of an image in pixels: any real one, and no product of
# them overflows
_SHARD_NAME = re.compile(r"latents-([0-9]{5,9})\.safetensors")
LATENT = "latent"  # name of a shard's only tensor, (rows, C, h, w)
_STORED: Mapping[Dtype, str] = {"float16": "F16", "float32": "F32"}  # safetensors names of types
NOT_FINITE = "its latent in the index has NaN or infinity"


@dataclass(frozen=True)
class LatentSource:
    """Everything a latent depends on besides its image; equal if latents are interchangeable.

    Attributes:
        graph_hash: hash of the image encoder's graph and of the bundle's weights.
        preprocessing: steps from an image to the graph's input.
        latent: declared output of the graph.
    """

    graph_hash: str
    preprocessing: Preprocessing
    latent: TensorSpec

    @classmethod
    def of(cls, manifest: Manifest) -> LatentSource:
        """The source that a bundle's image encoder is."""
        graph = manifest.graphs["image_encoder"]
        return cls(manifest.graph_hash("image_encoder"), manifest.preprocessing, graph.outputs[0])


@dataclass(frozen=True)
class Shard:
    """Entry of `index.json` for one file of latents.

    Attributes:
        rows: number of latents in the file.
        engine: description of the engine that computed them.
        sha256: hex digest of the file.
        size: length of the file in bytes.
    """

    rows: int
    engine: str
    sha256: str
    size: int

    def complaint(self, path: Path, latent: TensorSpec) -> str | None:
        """Message if the file is invalid, otherwise None; `latent` is the declaration of a row."""
        wanted = {LATENT: (_STORED[latent.dtype], (self.rows, *latent.shape[1:]))}
        try:
            if not path.is_file():
                return f"{path} is missing"
            if file_entry(path) != FileEntry(self.sha256, self.size):
                return f"{path} was altered (sha256 differs)"
            with path.open("rb") as file:
                headers = read_tensor_headers(file)
        except (OSError, ValueError) as error:
            return f"{path} cannot be read: {one_line(error)}"
        if (found := {name: (it.dtype, it.shape) for name, it in headers.items()}) != wanted:
            return f"{path} holds {_render(found)} where {INDEX_NAME} says {_render(wanted)}"
        return None


@dataclass(frozen=True)
class IndexManifest:
    """The content of `index.json`.

    Attributes:
        image_encoder: source of all latents of the index.
        table: content hash and length of `images.parquet`.
        shards: entries of the shards by file name.
    """

    image_encoder: LatentSource
    table: FileEntry
    shards: Mapping[str, Shard] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Content of `index.json` as text."""
        plain = to_plain(self)
        return json.dumps({"schema_version": plain.pop("schema_version"), **plain}, indent=2) + "\n"


@dataclass(frozen=True)
class Entry:
    """One row of `images.parquet`.

    Attributes:
        name: path of the image as given to the command; in a tar file, the tar's path and the
            sample's key.
        file: path of the file it was read from: the image file, or the tar file.
        size: length of that file in bytes.
        mtime_ns: modification time of that file in nanoseconds; null if the file must be read
            again.
        sha256: hex digest of the image's bytes.
        shard: name of the file with its latent; null if there is none.
        row: row of the latent in the shard.
        error: reason why the image cannot be read; null if it can.
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
    """Read `index.json`, and no other file.

    Raises:
        InputError: there is no index, or this version cannot read it.
        MissingExtraError: the packages that read an index are not installed.
    """
    require_extra()
    path = folder / INDEX_NAME
    try:
        plain = read_json(path)
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
    if complaint := _complaint(manifest):
        raise _unreadable(folder, f"{path}: {complaint}")
    return manifest


def _complaint(manifest: IndexManifest) -> str | None:
    """Message if `index.json` violates constraints that types cannot express, otherwise None."""
    latent, sizes = manifest.image_encoder.latent, manifest.image_encoder.latent.shape[1:]
    if latent.dtype not in _STORED:
        return f"field 'image_encoder.latent.dtype' is {latent.dtype!r}, which no latent is"
    if not (
        len(latent.shape) == 4
        and latent.batched
        and all(isinstance(size, int) and 1 <= size <= _LARGEST for size in sizes)
    ):
        return "field 'image_encoder.latent.shape' must be a name, then three sizes"
    if not 1 <= manifest.image_encoder.preprocessing.resolution <= _LARGEST:
        return f"field 'image_encoder.preprocessing.resolution' must be from 1 to {_LARGEST}"
    for name, shard in manifest.shards.items():
        if shard_number(name) < 0:  # a path could lead anywhere
            return f"field 'shards' names {name[:60]!r}, which is no shard"
        if shard.rows < 1:
            return f"field 'shards.{name}.rows' must be 1 or more"
    return None


def read_table(folder: Path, manifest: IndexManifest) -> Any:
    """Read and verify `images.parquet` as an Arrow table.

    Raises:
        InputError: the table is missing, altered, not a table of images, or refers to a missing
            latent.
    """
    # Try the first again: a writer may have renamed the second to it meanwhile.
    for path in (folder / TABLE_NAME, folder / NEXT_TABLE, folder / TABLE_NAME):
        try:
            if path.is_file() and path.stat().st_size == manifest.table.size:
                content = path.read_bytes()
                if entry_of(content) == manifest.table:
                    break
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unreadable(folder, f"{path} cannot be read: {error.strerror}") from None
    else:
        raise _unreadable(folder, f"{folder / TABLE_NAME} is missing or was altered")
    table = _parse_table(folder, path, content)
    names: set[str] = set()
    columns = (table[name].to_pylist() for name in ("name", "shard", "row"))
    for name, shard, row in zip(*columns, strict=True):
        if name in names:
            raise _unreadable(folder, f"{path} has the image {name!r} twice")
        names.add(name)
        if (shard is None) != (row is None) or (
            shard is not None
            and not (shard in manifest.shards and 0 <= row < manifest.shards[shard].rows)
        ):
            raise _unreadable(folder, f"{path} names row {row} of {shard}, which is not there")
    return table


def _parse_table(folder: Path, path: Path, content: bytes) -> Any:
    """Parse a Parquet file as an Arrow table with the columns of `table_schema`.

    Raises:
        InputError: the file is not such a table.
    """
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(BytesIO(content))
        if file.schema_arrow != table_schema():
            raise _unreadable(folder, f"{path} has other columns than an index's")
        # Distinct names take a byte per row at least; a forged count would only cost memory.
        if (rows := file.metadata.num_rows) > len(content):
            claimed = f"{counted(rows, 'image')} in {counted(len(content), 'byte')}"
            raise _unreadable(folder, f"{path} claims {claimed}")
        table = file.read()
        table.validate(full=True)  # else text that is not UTF-8 fails on access
    except InputError:
        raise
    except Exception as error:  # for invalid data, the library may raise anything
        raise _unreadable(folder, f"{path} is no table of images: {one_line(error)}") from None
    for name in ("name", "file"):
        if table[name].null_count:
            raise _unreadable(folder, f"{path} has an image without its {name!r}")
    return table


def table_schema() -> Any:
    """Columns of `images.parquet`, the fields of `Entry`."""
    import pyarrow

    kinds = {"str": pyarrow.string(), "int": pyarrow.int64()}
    return pyarrow.schema(
        [(it.name, kinds[str(it.type).removesuffix(" | None")]) for it in fields(Entry)]
    )


def to_entries(table: Any) -> list[Entry]:
    """Rows of an Arrow table of images."""
    return [Entry(*row) for row in zip(*table.to_pydict().values(), strict=True)]


def table_content(entries: Iterable[Entry]) -> bytes:
    """Bytes of `images.parquet`."""
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
    """Bytes of a shard."""
    from safetensors.numpy import save

    return save({LATENT: np.stack(latents)})


def finite_latents(shard: Path) -> NDArray[np.bool_]:
    """Whether each latent of a shard is finite, bool (rows,)."""
    from safetensors import safe_open

    with safe_open(shard, framework="numpy") as opened:
        latents = opened.get_slice(LATENT)
        rows = range(latents.get_shape()[0])
        return np.array([np.isfinite(latents[row : row + 1]).all() for row in rows], np.bool_)


def entry_of(content: bytes) -> FileEntry:
    """Hash and size of this content, as recorded in `index.json`."""
    return FileEntry(hashlib.sha256(content).hexdigest(), len(content))


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"latents-{number:05}.safetensors"


def shard_number(name: str) -> int:
    """Number of a shard, from its file name."""
    match = _SHARD_NAME.fullmatch(name)
    return int(match[1]) if match else -1


def require_extra() -> None:
    """Fail now if the packages that read and write an index are missing.

    Raises:
        MissingExtraError: a package is missing; the message names the extra that installs it.
    """
    try:
        import pyarrow  # noqa: F401
        import safetensors  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"an index needs packages that are not installed here ({error}). "
            f"Install them with: {install_command('index')}"
        ) from error


def _render(tensors: Mapping[str, tuple[str, tuple[int | str, ...]]]) -> str:
    shown = [f"{name[:60]} {dtype} {list(shape)}" for name, (dtype, shape) in tensors.items()]
    return "; ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _unreadable(folder: Path, complaint: str) -> InputError:
    return InputError(
        f"{complaint}. Remove the folder and index again: dsd-trt index IMAGES {folder}"
    )
