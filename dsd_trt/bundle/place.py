"""Where a bundle is: in a folder, on the Hugging Face Hub, or in the package itself."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from dsd_trt.bundle.hub import Repository, fetch_bundle, fetch_manifest, holds_bundle
from dsd_trt.bundle.manifest import MANIFEST_NAME
from dsd_trt.bundle.snapshot import Snapshot
from dsd_trt.errors import BundleError, InputError

EMBEDDED = Path(__file__).parents[1] / "data" / "shapes-bundle"
"""Folder of the demonstration's bundle, part of the package."""


def bundle_folder(bundle: str | os.PathLike[str] | None) -> Path:
    """Folder of a bundle; one on the Hugging Face Hub is downloaded unless it is cached.

    Args:
        bundle: path of a folder; or, if there is no such folder, a string accepted by
            `Repository.named`. None is the demonstration's.

    Raises:
        BundleError: there is no such folder, or the hub refuses to serve the bundle.
        MissingExtraError: a repository is given, and huggingface_hub is not installed.
    """
    if bundle is None:
        return EMBEDDED
    if not isinstance(bundle, (str, os.PathLike)):
        raise BundleError(f"a bundle is named by a path or a string, got {bundle!r}")
    folder = Path(bundle)
    if os.path.isdir(folder):  # noqa: PTH112 (Path.is_dir raises on odd names)
        return folder
    what = "no folder {!r}"
    if os.fspath(bundle) == "shapes":
        what += " (the demonstration is the default, without a name)"
    if os.path.exists(folder):  # noqa: PTH110 (Path.exists raises on odd names)
        what = "{!r} is a file, not a folder"
    elif isinstance(bundle, str) and (named := Repository.named(bundle)):
        return fetch_bundle(named)
    raise BundleError(
        f"{what.format(os.fspath(bundle))}. A bundle is a folder with a {MANIFEST_NAME}, or a "
        "repository on the Hugging Face Hub: ORG/NAME@REVISION, or ORG/NAME where no folder ORG is "
        "here. Make one with: dsd-trt export --out BUNDLE"
    )


def described_folder(bundle: str, *, whole: bool) -> Path:
    """Folder of a bundle to be described, not scored with.

    Args:
        bundle: name of the bundle as for `bundle_folder`, or "shapes" for the demonstration's.
        whole: whether all files of a bundle on the hub are downloaded; else `bundle.json` alone is.

    Raises:
        BundleError: there is no such bundle; the message says what is there instead.
        MissingExtraError: a repository is given, and huggingface_hub is not installed.
    """
    there = os.path.exists(bundle)  # noqa: PTH110 (Path.exists raises on odd names)
    if bundle == "shapes" and not there:
        return EMBEDDED
    if not there and not whole and (named := Repository.named(bundle)):
        return fetch_manifest(named)
    return bundle_folder(bundle)


def names_bundle(text: str) -> bool:
    """Whether a name is a bundle's and not a checkpoint's; asks the hub if it can be reached.

    Raises:
        MissingExtraError: a repository is given, and huggingface_hub is not installed.
    """
    if Path(text).exists() or not (named := Repository.named(text)):
        return (Path(text) / MANIFEST_NAME).is_file()
    return holds_bundle(named)


def own_bundle_folder(bundle: str, what: str) -> Path:
    """Folder of a bundle that is to be modified.

    Args:
        bundle: name of the bundle, as given by the user.
        what: files that are to be written into it, such as "plans".

    Raises:
        InputError: the bundle is a repository on the hub, or lies in the hub's cache.
        BundleError: there is no such folder.
    """
    if not Path(bundle).is_dir() and (named := Repository.named(bundle)):
        copy = named.name.partition("/")[2]
        revision = f" --revision {named.revision}" if named.revision else ""
        raise InputError(
            f"{what} are put into the bundle, and {bundle} is no folder of yours. Download it into "
            f"one: hf download {named.name}{revision} --local-dir {copy}; then name {copy}"
        )
    folder = bundle_folder(bundle)
    require_own(folder, what)
    return folder


def require_own(folder: Path, what: str) -> None:
    """Refuse to write into the Hugging Face cache.

    Args:
        folder: folder of the bundle to write into.
        what: files that are to be written into it, such as "plans".

    Raises:
        InputError: the folder lies in the cache.
    """
    if snapshot := Snapshot.around(folder):
        copy = snapshot.name.rpartition("/")[2]
        raise InputError(
            f"{what} are put into the bundle, and {folder} is the Hugging Face cache's. Copy it: "
            f"cp -rL {shlex.quote(str(folder))} {copy}; then name {copy}"
        )
