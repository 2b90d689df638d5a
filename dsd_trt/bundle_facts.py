"""What a bundle's files say about it, gathered without an engine and without its weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_trt.bundle.folder import read_bundle, read_manifest, verify_files
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.probability import why_no_probability
from dsd_trt.bundle.snapshot import Snapshot
from dsd_trt.engine.driver import find_driver
from dsd_trt.engine.tensorrt.plan import (
    FOLDER,
    PlanLibrary,
    Sidecar,
    open_plan,
    plan_folders,
    read_plan,
    why_not_fitting,
)
from dsd_trt.errors import BundleError, EngineError, one_line
from dsd_trt.files.schema import to_plain
from dsd_trt.signature import signature_of, verify_signatures


@dataclass(frozen=True)
class Sizes:
    """Sizes of a bundle's parts, in bytes.

    Attributes:
        files: number of files that `bundle.json` lists.
        bytes: size of all these files.
        weight_bytes: size of the files that graphs read weights from.
        missing_bytes: size of the files that are not downloaded from the hub yet.
        plan_bytes: size of all compiled plans beside these files.
    """

    files: int
    bytes: int
    weight_bytes: int
    missing_bytes: int
    plan_bytes: int


@dataclass(frozen=True)
class PlanFacts:
    """A plan of a bundle.

    Attributes:
        folder: folder of the plan, relative to the bundle.
        described: content of its `engine.json`.
        why_not_here: reason why the plan does not run on this machine; "" if it does.
    """

    folder: str
    described: Sidecar
    why_not_here: str


@dataclass(frozen=True)
class SignatureFacts:
    """The signature of a bundle.

    Attributes:
        key: identifier of the key that the signature names.
        comment: comment that is signed along.
        verified_with: path of the public key that verified it; None without a verification.
    """

    key: str
    comment: str
    verified_with: str | None


@dataclass(frozen=True)
class BundleFacts:
    """A bundle as its files describe it.

    Attributes:
        folder: folder of the bundle.
        manifest: parsed content of `bundle.json`.
        sizes: sizes of the bundle's files and plans.
        plans: TensorRT plans in the bundle.
        signature: signature of `bundle.json`; None for an unsigned bundle.
        verified: whether all files are those that `bundle.json` describes; None if their hashes
            were not compared.
        faults: messages about damaged parts, each with a remedy.
    """

    folder: Path
    manifest: Manifest
    sizes: Sizes
    plans: tuple[PlanFacts, ...]
    signature: SignatureFacts | None
    verified: bool | None
    faults: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, *, verify: bool = False, key: Path | None = None) -> BundleFacts:
        """Read what there is to know; damage is among the facts where `bundle.json` is intact.

        Args:
            folder: folder of the bundle.
            verify: whether every file is read and its hash compared, plans included.
            key: public key that must have signed the bundle; None requires no signature.

        Raises:
            BundleError: there is no bundle, its `bundle.json` cannot be read, or it lacks the
                required signature.
            InputError: the key file cannot be read.
            MissingExtraError: the package that verifies is not installed.
        """
        faults = list[str]()
        manifest = read_manifest(folder)
        if key is not None:
            try:
                verify_signatures(folder, key)
            except EngineError as error:  # a plan's description cannot be read
                raise BundleError(str(error)) from error
        there = _downloaded(folder, manifest)
        verified = True if verify else None
        try:
            if verify:
                read_bundle(folder)
            else:
                verify_files(folder, dataclasses.replace(manifest, files=there), hashes=False)
        except BundleError as error:
            faults.append(str(error))
            verified = False if verify else None
        plans, plan_bytes = _plans(folder, manifest, verify=verify, faults=faults)
        signature = None
        try:
            if named := signature_of(folder):
                signature = SignatureFacts(*named, None if key is None else str(key))
        except BundleError as error:
            faults.append(str(error))
        sizes = {name: entry.size for name, entry in manifest.files.items()}
        return cls(
            folder,
            manifest,
            Sizes(
                len(sizes),
                sum(sizes.values()),
                sum(sizes[name] for name in manifest.weight_files),
                sum(size for name, size in sizes.items() if name not in there),
                plan_bytes,
            ),
            plans,
            signature,
            verified,
            tuple(faults),
        )

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Modes that it scores in."""
        return ("pair",) if self.manifest.matrix is None else ("pair", "matrix")

    def why_no_probability(self, mode: Mode) -> str:
        """Why a mode's scores have no match probability, and what gives one; "" if they have."""
        return why_no_probability(self.manifest, mode, None, str(self.folder))

    def to_plain(self) -> dict[str, Any]:
        """All facts as values for JSON; "bundle" is the content of `bundle.json`."""
        return {
            "folder": str(self.folder),
            "digest": self.manifest.digest,
            "verified": self.verified,
            "faults": list(self.faults),
            "modes": list(self.modes),
            "calibration": {it: to_plain(self.manifest.calibration_of(it)) for it in self.modes},
            "why_no_probability": {it: self.why_no_probability(it) for it in self.modes},
            "sizes": to_plain(self.sizes),
            "plans": [
                {
                    "folder": it.folder,
                    "fits_here": not it.why_not_here,
                    "why_not_here": it.why_not_here,
                    **to_plain(it.described),
                }
                for it in self.plans
            ],
            "signature": to_plain(self.signature),
            "bundle": to_plain(self.manifest),
        }


def _plans(
    folder: Path, manifest: Manifest, *, verify: bool, faults: list[str]
) -> tuple[tuple[PlanFacts, ...], int]:
    """Plans of a bundle, and their size in bytes; damaged ones are added to `faults`."""
    found, size = list[PlanFacts](), 0
    for path in plan_folders(folder):
        try:
            plan = open_plan(path)
            why_not = _why_not_here(plan.sidecar, manifest)
            found.append(PlanFacts(f"{FOLDER}/{path.name}", plan.sidecar, why_not))
            own = plan.path.stat().st_size
            size += own
            if verify or own != plan.sidecar.size:
                read_plan(plan)  # its bytes are dropped; a wrong size is refused unread
        except EngineError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{path} has no plan ({error.strerror}): dsd-trt build {folder}")
    return tuple(found), size


def _downloaded(folder: Path, manifest: Manifest) -> Mapping[str, Any]:
    """Entries of the files that have to be there: of a snapshot of the hub, those that are."""
    if Snapshot.around(folder) is None:
        return manifest.files
    return {name: it for name, it in manifest.files.items() if (folder / name).exists()}


def _why_not_here(sidecar: Sidecar, manifest: Manifest) -> str:
    """Why no GPU of this machine runs a plan; "" if one does."""
    changed = why_not_fitting(
        sidecar, manifest, sidecar.version, next(iter(sidecar.compute_capabilities), "")
    )
    if changed:
        return changed
    try:
        capabilities = list(_capabilities())
        version = _version(sidecar.library)
    except EngineError as error:
        return str(error)
    reasons = [why_not_fitting(sidecar, manifest, version, it) for it in capabilities]
    return "" if "" in reasons else reasons[0]


def _capabilities() -> Iterator[str]:
    """Compute capability of each GPU, such as "8.6"; those that the driver does not tell are "?".

    Raises:
        EngineError: there is no driver, or no GPU.
    """
    for it in find_driver().capabilities:
        yield "?" if it is None else f"{it[0]}.{it[1]}"


@functools.cache
def _version(library: PlanLibrary) -> str:
    """Version of a library that is installed here.

    Raises:
        EngineError: the library is missing, or cannot be imported.
    """
    from dsd_trt.engine.tensorrt.runner import load_library  # imports numpy

    try:
        return str(load_library(library).__version__)
    except EngineError:
        raise
    except (Exception, SystemExit) as error:  # a broken library may raise anything on import
        why = f"{type(error).__name__}: {one_line(error)}"
        raise EngineError(f"{library} does not work here ({why})") from error
