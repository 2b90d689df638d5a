"""Bundles on the Hugging Face Hub: downloads only files that `bundle.json` lists.

`HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN` and `HF_ENDPOINT` have their usual meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_trt.bundle.manifest import MANIFEST_NAME, Manifest
from dsd_trt.bundle.snapshot import Snapshot
from dsd_trt.errors import BundleError, MissingExtraError
from dsd_trt.files.disk import require_free
from dsd_trt.files.names import stays_inside
from dsd_trt.files.schema import read_text
from dsd_trt.installation import install_command
from dsd_trt.log import get_logger, timed

logger = get_logger(__name__)

_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")


@dataclass(frozen=True)
class Repository:
    """A repository on the hub.

    Attributes:
        name: name of the repository, as ORG/NAME.
        revision: branch, tag or commit; None is the main branch.
    """

    name: str
    revision: str | None = None

    @classmethod
    def named(cls, text: str) -> Repository | None:
        """The repository that "ORG/NAME" or "ORG/NAME@REVISION" names; None for other strings.

        Without a revision, a name is treated as a path if a folder ORG exists here. A mistyped
        `out/bundle` must not start a download.
        """
        found = _NAME.fullmatch(text)
        if not found or (found["revision"] is None and Path(text).parent.is_dir()):
            return None
        return cls(found["name"], found["revision"])

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def fetch_bundle(repository: Repository) -> Path:
    """Download a bundle, unless it is in the hub's cache.

    Returns:
        Folder of the snapshot, with unverified files.

    Raises:
        BundleError: there is no such repository, revision or bundle; or it is not in the cache and
            the hub cannot be reached.
        InputError: the cache's disk has too little free space.
        MissingExtraError: huggingface_hub is not installed.
    """
    folder = fetch_manifest(repository)
    try:
        manifest = Manifest.from_json(read_text(folder / MANIFEST_NAME))
    except (OSError, ValueError, BundleError) as error:
        raise BundleError(f"bundle {repository} on the Hugging Face Hub: {error}") from None
    if outside := [name for name in manifest.files if not stays_inside(name)]:
        raise BundleError(
            f"bundle {repository} on the Hugging Face Hub: file {outside[0]!r} lies outside the "
            "bundle"
        )
    missing = [name for name in manifest.files if not (folder / name).exists()]
    needed = sum(manifest.files[name].size for name in missing)
    logger.info(
        "%s is the snapshot %s of the Hugging Face cache; %d of its %d files are to be downloaded",
        *(repository, folder, len(missing), len(manifest.files)),
    )
    elsewhere = "Name a folder on another disk in HF_HOME"
    require_free(folder, needed, f"the bundle {repository}", elsewhere)
    # All files come from the commit found first: a branch may move meanwhile.
    commit = Repository(repository.name, folder.name)
    for name in missing:
        try:
            with timed(logger, f"downloaded {name}, {manifest.files[name].size / 1e6:,.0f} MB,"):
                _fetch(commit, name)
        except BundleError as error:
            snapshot = Snapshot.around(folder) or Snapshot(folder.parent.parent, folder.name)
            lacking = [it for it in missing if not (folder / it).exists()]
            raise BundleError(
                f"the bundle {repository} was not downloaded whole: {', '.join(lacking)} missing "
                f"in {folder}. {error}. Download it: {snapshot.download(lacking)}"
            ) from error
    return folder


def fetch_manifest(repository: Repository) -> Path:
    """Download `bundle.json` alone, unless it is in the hub's cache.

    Returns:
        Folder of the snapshot, which may lack the bundle's other files.

    Raises:
        BundleError: there is no such bundle, as for `fetch_bundle`.
        MissingExtraError: huggingface_hub is not installed.
    """
    try:
        return _fetch(repository, MANIFEST_NAME).parent
    except BundleError as error:
        raise BundleError(f"no folder {str(repository)!r}, and no such bundle: {error}") from None


def holds_bundle(repository: Repository) -> bool:
    """Whether a repository has a `bundle.json`, as far as this machine can tell.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
    """
    hub, _ = _library()
    asked = repository.name, MANIFEST_NAME
    try:
        if isinstance(hub.try_to_load_from_cache(*asked, revision=repository.revision), str):
            return True
        return bool(hub.file_exists(*asked, revision=repository.revision))
    except Exception:  # errors of its dependencies, which share no base class
        return False


def _fetch(repository: Repository, file: str) -> Path:
    """Download one file, unless it is in the cache; raises as `fetch_bundle` does."""
    hub, errors = _library()
    where = f"{repository} on the Hugging Face Hub"
    try:
        return Path(hub.hf_hub_download(repository.name, file, revision=repository.revision))
    except errors.LocalEntryNotFoundError:
        raise BundleError(
            f"{file} of {repository} is not in the Hugging Face cache (HF_HOME), and the hub "
            "cannot be reached or HF_HUB_OFFLINE is set"
        ) from None
    except errors.GatedRepoError:
        raise BundleError(
            f"{where} is handed out to those alone who asked for access on its page and say who "
            "they are: hf auth login, or HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise BundleError(
            f"there is no repository {repository.name} on the Hugging Face Hub. If it is private, "
            "say who you are: hf auth login, or HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise BundleError(
            f"{repository.name} on the Hugging Face Hub has no revision {repository.revision!r}: "
            "name a branch, a tag or a commit"
        ) from None
    except errors.EntryNotFoundError:
        is_none = ": it is no bundle" if file == MANIFEST_NAME else ""
        raise BundleError(f"{where} has no {file}{is_none}") from None
    except Exception as error:  # errors of its dependencies, which share no base class
        raise BundleError(
            f"the Hugging Face Hub refuses to serve {file} of {repository}: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _library() -> tuple[Any, Any]:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingExtraError(
            "a bundle on the Hugging Face Hub needs a package that is not installed here "
            f"({error}). Install it with: {install_command('hub')}"
        ) from error
    return huggingface_hub, errors
