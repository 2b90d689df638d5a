"""Engines: each is asked in a process of its own, where it computes if it can."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsd_trt.doctor.child import ChildError, ask
from dsd_trt.doctor.control_group import granted
from dsd_trt.doctor.finding import Finding, State, split_advice
from dsd_trt.doctor.memory import tightest
from dsd_trt.doctor.packages import broken_base, hindrance_of, installed_version
from dsd_trt.doctor.threads import MORE_TASKS
from dsd_trt.engine import AUTO, AUTOMATIC, BACKENDS, BFLOAT16, ON_GPU
from dsd_trt.engine.onnxruntime.editions import Edition, installed_editions, package_folder
from dsd_trt.errors import BundleError, DsdError, cut
from dsd_trt.installation import install_command, rebuild_command, uninstall_command


@dataclass(frozen=True)
class Library:
    """The package that an engine computes with.

    Attributes:
        module: top module that it is imported by.
        distribution: name that it is installed by.
        extra: extra of this package that installs it.
    """

    module: str
    distribution: str
    extra: str


LIBRARIES = {
    "onnxruntime": Library("onnxruntime", "onnxruntime", "cpu"),
    "onnxruntime-cuda": Library("onnxruntime", "onnxruntime-gpu", "cuda"),
    "openvino": Library("openvino", "openvino", "openvino"),
    "openvino-bf16": Library("openvino", "openvino", "openvino"),
    "tensorrt": Library("tensorrt", "tensorrt", "gpu"),
    "tensorrt-rtx": Library("tensorrt_rtx", "tensorrt-rtx", "rtx"),
}
"""Libraries by the engine's name; an engine that a user adds has none here."""

_ENCODERS = ("text_encoder", "image_encoder")  # the quick ones of the demonstration's graphs
_NO_MEMORY = ("MemoryError", "bad_alloc", "Cannot allocate memory", "SIGKILL")
_LONGEST = 400  # characters of a library's message
_SCORE = "dsd-trt score IMAGES TEXTS --engine auto"


def examine(
    folder: str | None, packages: Sequence[Finding], gpu: Sequence[Finding]
) -> list[Finding]:
    """One finding per engine, and one about packages that overwrite each other.

    Args:
        folder: path of the bundle to score with; None if there is none.
        packages: findings about the packages that scoring needs on every engine.
        gpu: findings about the GPUs and their driver.
    """
    driver = next((it for it in gpu if it.subject == "driver" and it.state != "ok"), None)
    broken = broken_base(packages)
    found = examine_editions()
    for name in BACKENDS:
        if driver is not None and name in ON_GPU:  # what the driver lacks, it lacks
            found.append(Finding(name, driver.state, driver.detail, driver.remedy, _facts(name)))
        elif broken is not None:
            why = f"{broken.subject}, which scoring needs, does not work: see packages"
            found.append(Finding(name, "fault", why, broken.remedy, _facts(name)))
        else:
            found.append(examine_engine(name, folder))
    return found


def chosen(engine: str, engines: Sequence[Finding]) -> str | None:
    """Name of the engine that is taken, from the findings; None if with `AUTO` none works.

    Args:
        engine: name of the engine that is asked for, or `AUTO`.
        engines: findings about the engines, as `examine` returns them.
    """
    if engine != AUTO:
        return engine
    usable = {it.subject for it in engines if it.facts.get("works") and it.facts.get("fits")}
    return next((name for name in AUTOMATIC if name in usable), None)


def why_not(engine: str, engines: Sequence[Finding], *, bundle: bool) -> Finding | None:
    """The finding that tells why an engine cannot work; None if it can.

    Args:
        engine: name of the engine that is asked for, or `AUTO`.
        engines: findings about the engines, as `examine` returns them.
        bundle: whether a bundle was named, which the engine has to open as well.
    """
    if engine == AUTO:
        if chosen(AUTO, engines) is not None:
            return None
        broken = [it for it in engines if it.state == "fault" and it.subject not in ON_GPU]
        if not broken:
            why = "no engine works here: none of the processor's is installed"
            return Finding(AUTO, "fault", why, install_command("cpu"))
        why = f"no engine works here: {broken[0].subject}: {broken[0].detail}"
        return Finding(AUTO, "fault", why, broken[0].remedy)
    found = next(it for it in engines if it.subject == engine)
    if found.facts.get("works") and (found.facts.get("fits") or not bundle):
        return None
    return Finding(found.subject, "fault", found.detail, found.remedy or _SCORE, found.facts)


def examine_editions() -> list[Finding]:
    """Editions of ONNX Runtime that lie in one folder; nothing if there is one at most."""
    package = _found("onnxruntime") and package_folder()
    editions = installed_editions(package) if package else []
    if len(editions) < 2:
        return []
    named = " and ".join(map(str, editions))
    detail = f"{named} install the same files, so each has overwritten parts of the other"
    extra = "cuda" if any(it.name == "onnxruntime-gpu" for it in editions) else "cpu"
    remove = uninstall_command(*(it.name for it in editions))
    facts = {it.name: it.version for it in editions}
    return [
        Finding(
            "onnxruntime's files", "fault", detail, f"{remove} && {install_command(extra)}", facts
        )
    ]


def _facts(name: str) -> dict[str, Any]:
    """Facts of an engine that does not work, as far as is known."""
    library = LIBRARIES.get(name)
    version, extra = _version(library), library and library.extra
    return {"works": False, "fits": False, "version": version, "extra": extra}


def examine_engine(name: str, folder: str | None) -> Finding:
    """One engine, which computes in a process of its own if it can.

    Args:
        name: name of the engine.
        folder: path of the bundle to score with; None if there is none.
    """
    library = LIBRARIES.get(name)
    facts = _facts(name)
    if library is not None and name not in ON_GPU and not _found(library.module):
        detail = f"{library.distribution} is not installed"
        return Finding(name, "note", detail, install_command(library.extra), facts)
    try:
        # Nothing is taken from the cache, which would hide that a library does not compile.
        answer = ask("dsd_trt.doctor.engines:try_here", name, folder, variables=_VARIABLES)
    except ChildError as error:
        why, remedy = _mend(name, f"{error}")
        found = Finding(name, "fault", f"it does not work: {error}{why}", remedy, facts)
    else:
        found = Finding.from_plain(answer)
        found = replace(found, subject=name, facts=facts | dict(found.facts))
    if library is None or found.facts["works"] or not _found(library.module):
        return found
    hindrance = hindrance_of(library.distribution, library.module, found.detail)
    if hindrance is not None and name not in ON_GPU:
        why, remedy = hindrance
        return replace(found, state="fault", detail=f"{found.detail}; {why}", remedy=remedy)
    return found


_VARIABLES = {"DSD_TRT_CACHE": ""}


def try_here(name: str, folder: str | None) -> dict[str, Any]:
    """Let an engine compute in this process, if it can; a finding as plain values.

    Args:
        name: name of the engine.
        folder: path of the bundle to score with; None if there is none.
    """
    return _tried(name, folder).to_plain()


def _tried(name: str, folder: str | None) -> Finding:
    # With an engine's module come numpy and more.
    from dsd_trt.engine.choice import named_backend
    from dsd_trt.engine.self_check import ADVICE

    try:
        backend = named_backend(name)
        used = _computed(backend) if backend.reads_graphs else backend.title
    except BundleError as error:  # of the demonstration; another bundle may be whole
        detail = f"it loads, and has nothing to compute: {cut(str(error))}"
        facts = {"works": True, "fits": True, "computed": False}
        return Finding(name, "note", detail, rebuild_command(), facts)
    except DsdError as error:
        cause, remedy = split_advice(str(error).partition(f" {ADVICE}")[0])
        why, other = _mend(name, cause)
        if why or not remedy:
            remedy = other
        return Finding(name, _state(name), f"{cut(cause, _LONGEST)}{why}", remedy)
    facts = {"works": True, "fits": True, "computed": backend.reads_graphs}
    refused = folder and _why_not_for(backend, folder)
    if refused:
        facts["fits"] = False
        cause, remedy = split_advice(refused)
        if backend.reads_graphs:
            return Finding(name, "note", f"{used}; {cause}", remedy, facts)
        remedy = remedy or f"dsd-trt build {shlex.quote(folder or '')} --engine {name}"
        return Finding(name, "note", f"works here, but {cause}", remedy, facts)
    return Finding(name, "ok", used, "", facts)


def _computed(backend: Any) -> str:
    """Let a backend compute graphs of the demonstration; what it computed with.

    Raises:
        EngineError: it fails, or the results are not those of the export.
        BundleError: the demonstration is damaged.
    """
    from dsd_trt.bundle.folder import read_bundle
    from dsd_trt.bundle.place import EMBEDDED
    from dsd_trt.engine.self_check import SelfCheck

    bundle = read_bundle(EMBEDDED)
    check, used = SelfCheck.read(bundle), ""
    for graph in _ENCODERS:
        engine = backend.open(bundle, graph)
        used = str(engine.description)
        if check is not None:
            check.require(graph, bundle.manifest.graphs[graph], engine, {})
        engine.close()
    return used


def _why_not_for(backend: Any, folder: str) -> str:
    """Why a backend that works here cannot score with a bundle; "" if it can."""
    from dsd_trt.bundle.bfloat16 import MOST_CHANGES, in_words
    from dsd_trt.bundle.folder import Bundle, read_manifest
    from dsd_trt.mode import graphs_of, wanted_mode

    try:
        bundle = Bundle(Path(folder), read_manifest(Path(folder)))
        mode = wanted_mode(bundle.manifest, "auto")
        if not backend.reads_graphs:
            return backend.why_not(bundle, graphs_of(mode)) or ""
    except DsdError as error:
        return str(error)
    measured = (bundle.manifest.bfloat16 or {}).get(mode)
    if backend.name == BFLOAT16 and measured and measured.winner_changes > MOST_CHANGES:
        option = f"Score in FP32: --engine {backend.keeps_order_of}"
        return f"with this bundle it {in_words(measured)}. {option}"
    return ""


def _state(name: str) -> State:
    """State of an engine that fails: a note if its package is another one, or none."""
    library = LIBRARIES.get(name)
    if library is None:
        return "fault"
    if not _found(library.module):
        return "note"
    if name == "onnxruntime-cuda" and "onnxruntime-gpu" not in {it.name for it in _all_editions()}:
        return "note"
    if name == BFLOAT16:  # of which a processor may know nothing
        try:
            from dsd_trt.engine.openvino.graph import computes_bf16

            return "fault" if computes_bf16() else "note"
        except Exception:
            return "fault"
    return "fault"


def _mend(name: str, cause: str) -> tuple[str, str]:
    """What is behind a failure, and a command: for a limit, or one that writes the files again."""
    if _lacks_threads(cause):
        lifted = "ulimit -u unlimited" if granted().tasks is None else MORE_TASKS
        return "; a limit of processes and threads is reached", lifted
    if any(it in cause for it in _NO_MEMORY) and (room := tightest()) is not None:
        return f"; {room}", room.remedy
    if sys.platform.startswith("linux") and not Path("/proc/self").exists():
        return "; /proc is not mounted", "mount -t proc proc /proc"
    library = LIBRARIES.get(name)
    return "", install_command(library.extra, "--force-reinstall") if library else ""


def _lacks_threads(cause: str) -> bool:
    """Whether a library failed for a limit of processes and threads: EAGAIN."""
    return "Resource temporarily unavailable" in cause or "can't start new thread" in cause


def _all_editions() -> list[Edition]:
    package = package_folder()
    return installed_editions(package) if package else []


def _version(library: Library | None) -> str | None:
    """Version of an engine's package, if it is installed."""
    if library is None:
        return None
    if library.module != "onnxruntime":
        return installed_version(library.distribution)
    try:
        editions = {it.name: it.version for it in _all_editions()}
    except (ImportError, OSError, ValueError):
        return None
    if library.distribution == "onnxruntime":  # any edition computes on the processor
        return next(iter(editions.values()), None)
    return editions.get(library.distribution)


def _found(module: str) -> bool:
    """Whether an import would find a module, whole or broken."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # it is there, without what an import needs
        return True
