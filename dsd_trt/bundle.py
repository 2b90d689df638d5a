"""The bundle: a folder with everything a runtime needs to score, described by `bundle.json`.

The exporter writes one with `write_bundle`; runtimes read it with `read_bundle`, which verifies
every byte before anything runs. A bundle holds no code and no pickle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from dsd_trt.errors import BundleError
from dsd_trt.files import is_unfinished, write_whole
from dsd_trt.manifest import MANIFEST_NAME, FileEntry, Manifest, check_manifest, require

_LARGE_BYTES = 500_000_000  # of weights; Stable Diffusion's smallest scorer has four times as many


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    manifest: Manifest

    def path(self, file: str) -> Path:
        """Where one of the bundle's files lies."""
        return self.folder / file


def write_bundle(folder: Path, manifest: Manifest) -> Bundle:
    """Hash every file in a folder and write `bundle.json` last, so that it vouches for the rest.

    Args:
        folder: holds the finished files; an existing `bundle.json` is replaced.
        manifest: its `files` are ignored and filled in.

    Returns:
        The finished bundle.

    Raises:
        BundleError: the manifest is inconsistent or names a file the folder lacks.
    """
    files = {
        path.relative_to(folder).as_posix(): file_entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME and not is_unfinished(path)
    }
    return write_manifest(folder, dataclasses.replace(manifest, files=files))


def file_entry(path: Path) -> FileEntry:
    """What `bundle.json` says of a file."""
    return FileEntry(_sha256(path), path.stat().st_size)


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Write `bundle.json`, whole or not at all; as `write_bundle`, `files` being known already."""
    check_manifest(manifest)
    _check_named_files(manifest)
    write_whole(folder / MANIFEST_NAME, manifest.to_json())
    return Bundle(folder, manifest)


def read_bundle(folder: Path) -> Bundle:
    """Open a bundle and verify it whole: schema, graph contract, and every file's size and hash.

    Raises:
        BundleError: no bundle there, or anything in it is not as `bundle.json` says.
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST_NAME}. "
            "Make one with: dsd-trt export --out BUNDLE"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    try:
        manifest = Manifest.from_json(text)
        _check_named_files(manifest)
        for name, entry in manifest.files.items():
            _verify_file(folder, name, entry)
    except BundleError as error:
        raise BundleError(f"bundle {folder}: {error}") from None
    return Bundle(folder, manifest)


def bundle_folder(bundle: str | os.PathLike[str] | None) -> Path:
    """Where a bundle lies; None is the embedded one.

    Raises:
        BundleError: there is no such folder.
    """
    if bundle is None:
        return Path(str(resources.files("dsd_trt") / "data" / "shapes-bundle"))
    folder = Path(bundle)
    if not folder.is_dir():
        raise BundleError(
            f"no folder {str(folder)!r}. A bundle is a folder with a bundle.json; bundles cannot "
            "be fetched by name yet. Make one with: dsd-trt export --out BUNDLE"
        )
    return folder


def is_large(folder: Path) -> bool:
    """Whether a bundle has so many weights that memory and disk are worth more than a second."""
    return sum(file.stat().st_size for file in folder.glob("*.data")) >= _LARGE_BYTES


def link_or_copy(source: Path, target: Path) -> None:
    """Let a file stand in another folder too: the same file where it can be, else a copy.

    Raises:
        OSError: it cannot be copied either.
    """
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)


def _check_named_files(manifest: Manifest) -> None:
    for where, file in (
        *((f"graphs.{name}.file", graph.file) for name, graph in manifest.graphs.items()),
        ("tokenizer.file", manifest.tokenizer.file),
        *([("adapter.file", manifest.adapter.file)] if manifest.adapter else []),
    ):
        require(file in manifest.files, where, f"names {file!r}, which is not among the files")
    if (adapter := manifest.adapter) is not None:
        size, needed = manifest.files[adapter.file].size, 4 * adapter.numbers
        require(size == needed, "adapter.tensors", f"are {needed} bytes, the file has {size}")


def _verify_file(folder: Path, name: str, entry: FileEntry) -> None:
    pure = PurePosixPath(name)
    inside = not pure.is_absolute() and ".." not in pure.parts and "\\" not in name
    path = folder / name
    if not inside or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"file {name!r} lies outside the bundle")
    if not path.is_file():
        raise BundleError(f"file {name!r} is missing; copy the bundle again")
    if (size := path.stat().st_size) != entry.size:
        raise BundleError(
            f"file {name!r} has {size} bytes instead of {entry.size}; copy the bundle again"
        )
    if _sha256(path) != entry.sha256:
        raise BundleError(f"file {name!r} was altered (sha256 differs); copy the bundle again")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
