"""The bundle: whether its files are whole, and whether its plans run here."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsd_trt.batching import activation_bytes
from dsd_trt.bundle.folder import LARGE_BYTES
from dsd_trt.bundle.hub import Repository
from dsd_trt.bundle.place import EMBEDDED, described_folder
from dsd_trt.bundle.snapshot import Snapshot
from dsd_trt.bundle_facts import BundleFacts, PlanFacts
from dsd_trt.doctor.budget import memory_budget
from dsd_trt.doctor.finding import Finding, State, split_advice
from dsd_trt.doctor.studied import Needs, Studied
from dsd_trt.engine.driver import why_no_driver
from dsd_trt.errors import DsdError, counted
from dsd_trt.installation import rebuild_command


def study_here(bundle: str | None, key: str | None) -> dict[str, Any]:
    """Read and verify a bundle in this process; a `Studied` as plain values.

    Args:
        bundle: name of the bundle; None is the demonstration's.
        key: path of the public key that must have signed it; None requires no signature.
    """
    try:
        folder = EMBEDDED if bundle is None else described_folder(bundle, whole=False)
        facts = BundleFacts.read(folder, key=None if key is None else Path(key))
        whole = not facts.sizes.missing_bytes
        if whole:  # else some of its files are on the hub alone
            facts = BundleFacts.read(folder, verify=True)
    except DsdError as error:
        cause, remedy = split_advice(str(error))
        if not remedy and bundle is not None and (named := Repository.named(bundle)):
            offline = os.environ.get("HF_HUB_OFFLINE")
            remedy = "unset HF_HUB_OFFLINE" if offline else f"hf download {shlex.quote(named.name)}"
        if not remedy and key is not None:  # it is not signed, or by another key
            again = "dsd-trt doctor --bundle BUNDLE"  # the demonstration has no signature
            remedy = f"dsd-trt sign {shlex.quote(bundle)} --key KEY" if bundle else again
        finding = Finding(bundle or "shapes", "fault", cause, remedy)
        return _plain(Studied(None, (finding,), error=str(error)))
    subject = bundle or "shapes"
    sizes = facts.sizes
    known = {"folder": str(folder), "bytes": sizes.bytes, "modes": list(facts.modes)}
    detail = f"{folder}: {facts.manifest.precision}, {' and '.join(facts.modes)} mode"
    findings = [_damage(subject, it, folder) for it in facts.faults]
    if not whole:
        detail += f"; {sizes.missing_bytes / 1e9:.2f} GB are not downloaded yet"
        fetch = f"dsd-trt inspect {shlex.quote(subject)} --verify"
        findings.append(Finding(subject, "note", detail, fetch, known))
    elif not findings:
        files = counted(sizes.files, "file")
        findings.append(Finding(subject, "ok", f"{detail}; all {files} whole", "", known))
    weights = sizes.weight_bytes or sizes.bytes
    needs = Needs(
        weights,
        activation_bytes(facts.manifest, 0),
        activation_bytes(facts.manifest, memory_budget()),
        sizes.missing_bytes,
        0 if weights >= LARGE_BYTES else 2 * weights,  # of a large one, none are kept unasked
    )
    plans = tuple(_plan(it, folder) for it in facts.plans)
    faults = "\n".join(facts.faults)
    return _plain(Studied(str(folder), tuple(findings), plans, needs, faults))


def _damage(subject: str, message: str, folder: Path) -> Finding:
    """A damaged file or plan, with the command that replaces it."""
    cause, remedy = split_advice(message)
    if not remedy:
        cause = cause.removesuffix("; copy the bundle again")
        remedy = f"cp -rT ORIGINAL {shlex.quote(str(folder))}"
        if folder == EMBEDDED:
            remedy = rebuild_command()
        elif Snapshot.around(folder) is not None:
            remedy = f"dsd-trt inspect {shlex.quote(subject)} --verify"
    return Finding(subject, "fault", cause, remedy, {"folder": str(folder)})


def _plan(plan: PlanFacts, folder: Path) -> Finding:
    it = plan.described
    facts = {
        "folder": plan.folder,
        "library": it.library,
        "version": it.version,
        "compute_capabilities": list(it.compute_capabilities),
        "fits": not plan.why_not_here,
    }
    subject = f"{it.title}, {it.library}"
    if not plan.why_not_here:
        detail = f"{it.version}, GPUs {', '.join(it.compute_capabilities)}: fits this machine"
        return Finding(subject, "ok", detail, "", facts)
    # Where there is no GPU, no other plan would run either.
    no_gpu = why_no_driver() is not None and "bundle" not in plan.why_not_here
    state: State = "note" if no_gpu else "warning"
    cause, remedy = split_advice(plan.why_not_here)
    build = f"dsd-trt build {shlex.quote(str(folder))} --engine {it.library}"
    remedy = "" if no_gpu else remedy or build
    return Finding(subject, state, f"{plan.folder} {cause}", remedy, facts)


def _plain(studied: Studied) -> dict[str, Any]:
    return {
        "folder": studied.folder,
        "findings": [it.to_plain() for it in studied.findings],
        "plans": [it.to_plain() for it in studied.plans],
        "needs": studied.needs and asdict(studied.needs),
        "error": studied.error,
    }
