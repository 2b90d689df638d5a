"""Folders in the layout of the Hugging Face cache, with links that lead outside of it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

COMMIT = "0f" * 20


def lay_out(cache: Path, files: Path, *, name: str = "org--name", stored: bool = False) -> Path:
    """Copy a folder's files to a cache in huggingface_hub's layout.

    Args:
        cache: folder of the Hugging Face cache.
        files: folder whose files are copied.
        name: name of the repository, ORG--NAME.
        stored: whether large files lie in the store that version 2 shares between repositories
            for downloads by Xet.

    Returns:
        The folder of the snapshot.
    """
    repository = cache / f"models--{name}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in files.iterdir():
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        blob = repository / "blobs" / key
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{key}")
        if stored and path.suffix in (".onnx", ".data"):
            store = cache / "blobs" / key[:2]
            store.mkdir(parents=True, exist_ok=True)
            (cache / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
            blob.rename(store / key)
            blob.symlink_to(f"../../blobs/{key[:2]}/{key}")
    return snapshot


def relink(path: Path, target: str | Path) -> None:
    path.unlink()
    path.symlink_to(target)


def to_another_repository(path: Path) -> None:
    other = path.parents[3] / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    shutil.copyfile(path, other / "blob")
    relink(path, "../../../models--org--other/blobs/blob")


def out_of_the_cache(path: Path) -> None:
    shutil.copyfile(path, path.parents[4] / "elsewhere")
    relink(path, "../../../../elsewhere")


def absolute_out_of_the_cache(path: Path) -> None:
    shutil.copyfile(path, path.parents[4] / "elsewhere")
    relink(path, path.parents[4] / "elsewhere")


def through_a_blob(path: Path) -> None:
    """Leave the snapshot's link intact, but make its blob a link that leads outside."""
    blob = path.resolve()
    shutil.copyfile(path, path.parents[4] / "elsewhere")
    relink(blob, "../../../elsewhere")


def through_linked_blobs(path: Path) -> None:
    blobs = path.parents[2] / "blobs"
    blobs.rename(path.parents[4] / "blobs-elsewhere")
    blobs.symlink_to("../../blobs-elsewhere")


def store_without_marker(path: Path) -> None:
    blob = path.resolve()
    store = path.parents[3] / "blobs" / blob.name[:2]
    store.mkdir(parents=True)
    blob.rename(store / blob.name)
    blob.symlink_to(f"../../blobs/{blob.name[:2]}/{blob.name}")


def straight_to_the_store(path: Path) -> None:
    store_without_marker(path)
    (path.parents[3] / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    name = path.readlink().name
    relink(path, f"../../../blobs/{name[:2]}/{name}")


def in_a_circle(path: Path) -> None:
    relink(path, path.name)


def in_a_circle_of_blobs(path: Path) -> None:
    blob = path.resolve()
    relink(blob, blob.name)


def to_a_sibling(path: Path) -> None:
    shutil.copyfile(path, path.with_name("own"))
    relink(path, "own")


def to_refs(path: Path) -> None:
    shutil.copyfile(path, path.parents[2] / "refs" / "v1")
    relink(path, "../../refs/v1")


# Changes of a snapshot's link, whose new target has exactly the old content.
LEADING_OUT: tuple[Callable[[Path], None], ...] = (
    to_another_repository,
    out_of_the_cache,
    absolute_out_of_the_cache,
    through_a_blob,
    through_linked_blobs,
    store_without_marker,
    straight_to_the_store,
    in_a_circle,
    in_a_circle_of_blobs,
    to_a_sibling,
    to_refs,
)
