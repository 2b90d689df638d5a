"""Write a fitted calibration into a bundle, in place or into a copy.

Only `bundle.json` and the model card change. Graphs, weights and compiled plans stay as they are.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dsd_trt.bundle.folder import Bundle, file_entry, require_inside, write_manifest
from dsd_trt.bundle.manifest import Calibration, Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.place import EMBEDDED, require_own
from dsd_trt.bundle.probability import with_card_rows
from dsd_trt.bundle.snapshot import Snapshot
from dsd_trt.engine.tensorrt.plan import PLAN_NAME, SIDECAR_NAME, plans
from dsd_trt.errors import BundleError, InputError
from dsd_trt.files.disk import clone_or_copy, require_room
from dsd_trt.files.folders import require_writable as require_writable_folder
from dsd_trt.files.folders import whole_folder
from dsd_trt.files.lock import sole_writer
from dsd_trt.files.whole import write_whole
from dsd_trt.signature import SIGNATURE_NAME

_CARD = "MODEL_CARD.md"


def require_writable(folder: Path, out: Path | None) -> None:
    """Refuse, before any work, a place that a calibrated bundle cannot be written to.

    Args:
        folder: folder of the bundle that is calibrated.
        out: folder of the copy to write; None changes the bundle itself.

    Raises:
        InputError: the bundle is the package's or the Hugging Face cache's and no copy is asked
            for, or the copy's folder is not empty or cannot be written.
    """
    if out is None:
        if folder.resolve() == EMBEDDED.resolve():
            raise InputError(
                "the demonstration's bundle is part of the package: write a copy with -o NEW_BUNDLE"
            )
        require_own(folder, "match probabilities")
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: give a new folder, -o NEW_BUNDLE")
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a new folder, -o NEW_BUNDLE")
    elif Snapshot.around(out):
        raise InputError(f"{out} lies in the Hugging Face cache: give a folder of yours")
    else:
        require_writable_folder(out.parent, "-o")


def with_calibration(manifest: Manifest, mode: Mode, calibration: Calibration) -> Manifest:
    """The manifest with another calibration of one mode."""
    if mode == "pair":
        return replace(manifest, calibration=calibration)
    assert manifest.matrix is not None  # the mode was scored in
    return replace(manifest, matrix=replace(manifest.matrix, calibration=calibration))


def write_calibrated(
    bundle: Bundle, mode: Mode, calibration: Calibration, out: Path | None
) -> tuple[Bundle, bool]:
    """Write a calibration into a bundle, or into a copy of it.

    At every moment the folder is a whole bundle: a process that is killed leaves the old one, or
    the new one without its model card's entry.

    Args:
        bundle: verified bundle whose scores were fitted.
        mode: mode whose scores the calibration was fitted to.
        calibration: fitted a and b of that mode, with their record.
        out: folder of the copy, new or empty; None changes the bundle itself.

    Returns:
        The calibrated bundle, and whether a signature was removed: it was that of the former
        `bundle.json`.

    Raises:
        InputError: the place cannot be written to, as for `require_writable`; or another process
            writes there.
        BundleError: the bundle was changed by another process since it was opened.
        DsdError: the disk is full.
    """
    require_writable(bundle.folder, out)
    if out is not None:
        written = _write_copy(bundle, with_calibration(bundle.manifest, mode, calibration), out)
        return written, (bundle.folder / SIGNATURE_NAME).exists()
    with sole_writer(bundle.folder, inside=True, wait=10):
        text = (bundle.folder / "bundle.json").read_text(encoding="utf-8")
        if Manifest.from_json(text) != bundle.manifest:
            raise BundleError(f"{bundle.folder} was changed by another process: run this again")
        manifest = with_calibration(bundle.manifest, mode, calibration)
        card = _card(bundle, manifest)
        if card is None:
            written = write_manifest(bundle.folder, manifest)
        else:  # the card may change while no manifest has its hash
            others = {name: it for name, it in manifest.files.items() if name != _CARD}
            write_manifest(bundle.folder, replace(manifest, files=others))
            write_whole(bundle.path(_CARD), card)
            files = {name: manifest.files[name] for name in others}
            files[_CARD] = file_entry(bundle.path(_CARD))
            written = write_manifest(bundle.folder, replace(manifest, files=files))
        signature = bundle.path(SIGNATURE_NAME)
        signed = signature.exists()
        signature.unlink(missing_ok=True)
    return written, signed


def _write_copy(bundle: Bundle, manifest: Manifest, out: Path) -> Bundle:
    card = _card(bundle, manifest)
    kept = [name for name in _files(bundle) if card is None or name != _CARD]
    advice = "Give a folder on another disk: -o NEW_BUNDLE"
    require_room(out, map(bundle.path, kept), "the copy of the bundle", advice)
    with whole_folder(out) as fresh:
        for name in kept:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            clone_or_copy(bundle.path(name), fresh / name)
        files = dict(manifest.files)
        if card is not None:
            write_whole(fresh / _CARD, card)
            files[_CARD] = file_entry(fresh / _CARD)
        written = write_manifest(fresh, replace(manifest, files=files))
        require_writable(bundle.folder, out)  # again: another process may have filled it since
    return replace(written, folder=out)


def _files(bundle: Bundle) -> Iterator[str]:
    """Files of a bundle and of its plans; others were never verified, so they are not copied."""
    yield from bundle.manifest.files
    snapshot = Snapshot.around(bundle.folder)
    for plan in plans(bundle.folder):
        for name in (PLAN_NAME, SIDECAR_NAME):
            file = (plan.folder.relative_to(bundle.folder) / name).as_posix()
            require_inside(bundle.folder, file, snapshot)
            yield file


def _card(bundle: Bundle, manifest: Manifest) -> str | None:
    """The model card with the new probabilities; None if it stays as it is."""
    if _CARD not in manifest.files:
        return None
    card = bundle.path(_CARD).read_text(encoding="utf-8")
    return changed if (changed := with_card_rows(card, manifest)) != card else None


def sign_again(folder: Path) -> str:
    """Warning that a signature holds no longer, with the command that signs again."""
    return (
        "the bundle was signed, and its signature holds no longer: sign it again with "
        f"dsd-trt sign {shlex.quote(str(folder))} --key KEY"
    )
