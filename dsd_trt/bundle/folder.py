"""The bundle: a folder with everything needed for scoring, described by `bundle.json`.

`write_bundle` hashes all files of a folder and describes them. The exporter, which knows the hashes
of what it wrote, uses `write_manifest`. Runtimes read a bundle with `read_bundle`, which verifies
every byte before anything runs. A bundle holds no code and no pickle.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from dsd_trt.bundle.external_data import external_files
from dsd_trt.bundle.fields import require
from dsd_trt.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest, check_manifest
from dsd_trt.bundle.maps import NAME as MAPS
from dsd_trt.bundle.maps import maps_graph, why_no_maps
from dsd_trt.bundle.others import other_folder
from dsd_trt.bundle.snapshot import Snapshot
from dsd_trt.errors import BundleError, InputError, counted
from dsd_trt.files.lfs import POINTER, is_pointer_file
from dsd_trt.files.names import stays_inside
from dsd_trt.files.schema import read_text
from dsd_trt.files.unfinished import is_unfinished
from dsd_trt.files.whole import sha256_of, write_whole
from dsd_trt.log import get_logger, timed

logger = get_logger(__name__)

LARGE_BYTES = 500_000_000
"""Bytes of weights of a large bundle; Stable Diffusion's smallest scorer has four times that."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    manifest: Manifest

    def __repr__(self) -> str:
        it = self.manifest
        modes = "pair mode" if it.matrix is None else "pair and matrix mode"
        return f"Bundle({str(self.folder)!r}: {it.precision}, {it.method.score} score, {modes})"

    def path(self, file: str) -> Path:
        """Path of one of the bundle's files."""
        return self.folder / file


def write_bundle(folder: Path, manifest: Manifest) -> Bundle:
    """Hash every file in a folder, then write `bundle.json`, which describes them, last.

    Args:
        folder: folder of the finished files; an existing `bundle.json` is replaced.
        manifest: description of the bundle; its `files` are replaced.

    Returns:
        The finished bundle.

    Raises:
        BundleError: the manifest is inconsistent, or names a missing file.
    """
    return write_manifest(folder, dataclasses.replace(manifest, files=files_in(folder)))


def files_in(
    folder: Path, known: Mapping[str, FileEntry] = MappingProxyType({})
) -> dict[str, FileEntry]:
    """Entries of `bundle.json` for all files of a folder, by name.

    Args:
        folder: folder of the bundle.
        known: entries of files that need not be read again.
    """
    names = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME and not is_unfinished(path)
    }
    return {name: known.get(name) or file_entry(path) for name, path in names.items()}


def file_entry(path: Path) -> FileEntry:
    """Entry of `bundle.json` for one file."""
    return FileEntry(sha256_of(path), path.stat().st_size)


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Write `bundle.json` atomically; like `write_bundle`, but with `files` already known."""
    text = manifest.to_json()
    check_manifest(manifest)
    Manifest.from_json(text)  # never write an unreadable manifest
    _check_named_files(manifest)
    _check_weights(folder, manifest)
    write_whole(folder / MANIFEST_NAME, text)
    return Bundle(folder, manifest)


def read_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and verify it: schema, graph contract, size and hash of every file.

    Raises:
        BundleError: there is no bundle, or something in it differs from `bundle.json`.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise BundleError(f"a bundle is named by a path or a string, got {folder!r}")
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        size = sum(entry.size for entry in manifest.files.values())
        with timed(logger, f"verified the {size / 1e6:,.0f} MB of the bundle {folder}"):
            verify_files(folder, manifest)
        _check_weights(folder, manifest)
    except BundleError as error:
        raise BundleError(f"bundle {folder}: {error}") from None
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read `bundle.json`, and no other file: schema and graph contract are verified.

    Raises:
        BundleError: there is no bundle, or its `bundle.json` is not one this version reads.
    """
    path = folder / MANIFEST_NAME
    try:
        if path.is_symlink():
            require_inside(folder, MANIFEST_NAME, Snapshot.around(folder))
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        if (other := other_folder(folder)) is not None:
            raise BundleError(f"{folder} is no bundle but {other}") from None
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST_NAME}. "
            "Make one with: dsd-trt export --out BUNDLE"
        ) from None
    except (OSError, ValueError) as error:
        again = _again(Snapshot.around(folder), [MANIFEST_NAME], force=True)
        raise BundleError(f"{path} cannot be read: {error}; {again}") from None
    except BundleError as error:
        raise BundleError(f"bundle {folder}: {error}") from None
    try:
        manifest = Manifest.from_json(text)
        _check_named_files(manifest)
    except BundleError as error:
        raise BundleError(f"bundle {folder}: {error}") from None
    return manifest


def with_maps(bundle: Bundle) -> Bundle:
    """The same bundle with the maps graph among the graphs that a backend can open, by `maps.NAME`.

    Raises:
        InputError: it has none; the message says how to get one.
    """
    manifest = bundle.manifest
    if (maps := manifest.maps) is None:
        if (why := why_no_maps(manifest.method)) is not None:
            raise InputError(f"scores of the bundle {bundle.folder} cannot be explained: {why}")
        raise InputError(
            f"the bundle {bundle.folder} has no graph of its attention maps. Export it again with "
            "one: dsd-trt export --maps --out BUNDLE"
        )
    graph = maps_graph(maps, manifest.method, manifest.graphs["pair_scorer"])
    graphs = {**manifest.graphs, MAPS: graph}
    return dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, graphs=graphs))


def verify_files(folder: Path, manifest: Manifest, *, hashes: bool = True) -> None:
    """Verify that every file lies in the bundle's folder or its Hub snapshot, and is unaltered.

    Args:
        folder: folder of the bundle.
        manifest: description of the bundle.
        hashes: whether files are read and their hashes compared; else their sizes alone are.

    Raises:
        BundleError: a file is missing, misplaced or altered; the message names it, and all missing
            ones.
    """
    snapshot = Snapshot.around(folder)
    name = MANIFEST_NAME
    try:
        for name in manifest.files:
            require_inside(folder, name, snapshot)
        if missing := [name for name in manifest.files if not (folder / name).exists()]:
            named = ", ".join(map(repr, missing))
            raise BundleError(
                f"file{'s' * (len(missing) > 1)} {named} {'are' if len(missing) > 1 else 'is'} "
                f"missing; {_again(snapshot, missing, force=False)}"
            )
        for name, entry in manifest.files.items():
            _verify_file(folder, name, entry, snapshot, hashes=hashes)
    except OSError as error:
        raise BundleError(f"file {name!r} cannot be read: {error.strerror}") from None


def is_large(folder: Path) -> bool:
    """Whether a bundle's weights are so large that memory and disk outweigh a second of start."""
    return weight_bytes(folder) >= LARGE_BYTES


def weight_bytes(folder: Path) -> int:
    """Size of a bundle's weights on disk, in bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.data"))


def _check_named_files(manifest: Manifest) -> None:
    for where, file in (
        *_graph_files(manifest),
        ("tokenizer.file", manifest.tokenizer.file),
        *([("adapter.file", manifest.adapter.file)] if manifest.adapter else []),
        *([("self_check.file", manifest.self_check.file)] if manifest.self_check else []),
    ):
        require(file in manifest.files, where, f"names {file!r}, which is not among the files")
    if (adapter := manifest.adapter) is not None:
        size, needed = manifest.files[adapter.file].size, 4 * adapter.numbers
        has = f"are {counted(needed, 'byte')}, the file has {size}"
        require(size == needed, "adapter.tensors", has)


def _graph_files(manifest: Manifest) -> list[tuple[str, str]]:
    """Field and file of every graph, of every graph's form for CUDA, and of the maps graph."""
    return [
        *((f"graphs.{name}.file", graph.file) for name, graph in manifest.graphs.items()),
        *((f"cuda_form.{name}", file) for name, file in (manifest.cuda_form or {}).items()),
        *([("maps.file", manifest.maps.file)] if manifest.maps else []),
    ]


def _check_weights(folder: Path, manifest: Manifest) -> None:
    """Refuse graphs whose weights lie in a file that `bundle.json` does not list."""
    for where, graph in _graph_files(manifest):
        # Engines choose a format by suffix; other formats would read unverified files.
        require(graph.endswith(".onnx"), where, f"names {graph!r}, which is no .onnx")
        try:
            locations = external_files((folder / graph).read_bytes())
        except OSError as error:
            raise BundleError(f"file {graph!r} cannot be read: {error.strerror}") from None
        except ValueError:
            continue  # engines refuse it as well
        for location in sorted(locations):
            file = (PurePosixPath(graph).parent / location).as_posix()
            require(
                # Exact names: "./weights.data" would be another name for the verified file,
                # and ONNX Runtime treats some names as a memory address.
                file in manifest.weight_files
                and location == PurePosixPath(location).as_posix()
                and "*" not in location,
                where,
                f"takes weights from {location!r}, which is not among the bundle's files of "
                "weights. Export again: dsd-trt export --out BUNDLE",
            )


def require_inside(folder: Path, name: str, snapshot: Snapshot | None) -> None:
    """Refuse a name or link that leads out of a bundle, except to the Hub snapshot's blobs.

    Raises:
        BundleError: a name leads outside; the message names the file.
    """
    path, top = folder / name, os.path.realpath(folder)
    fits = stays_inside(name) and Path(os.path.realpath(path.parent)).is_relative_to(top)
    if fits and path.is_symlink():
        if snapshot is not None:
            fits = snapshot.leads_to_blob(path)
        else:
            fits = Path(os.path.realpath(path)).is_relative_to(top)
    if not fits:
        raise BundleError(f"file {name!r} lies outside the bundle")


def _verify_file(
    folder: Path, name: str, entry: FileEntry, snapshot: Snapshot | None, *, hashes: bool
) -> None:
    path, again = folder / name, _again(snapshot, [name], force=True)
    if not path.is_file():
        raise BundleError(f"file {name!r} is no file; {again}")
    if (size := path.stat().st_size) != entry.size:
        if is_pointer_file(path):
            raise BundleError(f"file {name!r}: {POINTER}")
        raise BundleError(
            f"file {name!r} has {counted(size, 'byte')} instead of {entry.size}; {again}"
        )
    if hashes and sha256_of(path) != entry.sha256:
        raise BundleError(f"file {name!r} was altered (sha256 differs); {again}")


def _again(snapshot: Snapshot | None, files: Sequence[str], *, force: bool) -> str:
    """Remedy for missing or altered files."""
    if snapshot is None:
        return "copy the bundle again"
    return f"download it again: {snapshot.download(files, force=force)}"
