"""NVIDIA's GPUs and driver, and the packages of CUDA against each other and the driver."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsd_trt.doctor.child import ChildError, ask
from dsd_trt.doctor.finding import Finding, State
from dsd_trt.doctor.packages import numbers
from dsd_trt.engine.driver import describe_device, driver_release, find_driver
from dsd_trt.errors import EngineError, counted
from dsd_trt.installation import install_command, uninstall_command, upgrade_command

_NVIDIA = "0x10de"
_DISPLAY = "0x03"  # class of display controllers and 3D accelerators
_MARKS_OF_CONTAINERS = ("/.dockerenv", "/run/.containerenv")
_LEAST_BINDINGS = "12.8"
# Distributions that have to be of one version, by the extra that installs them.
_FAMILIES = {
    "gpu": re.compile(r"tensorrt(?:-cu\d+)?(?:-bindings|-libs)?"),
    "rtx": re.compile(r"tensorrt-rtx(?:-cu\d+)?(?:-bindings|-libs)?"),
}
_OF_CUDA = re.compile(r"(?:tensorrt|tensorrt-rtx|nvidia-[a-z-]+)-cu(\d+)(?:-bindings|-libs)?")


def examine() -> Iterator[Finding]:
    """Driver, GPUs and packages, asked in a process of its own."""
    try:
        found = ask("dsd_trt.doctor.gpu:look_here")
    except ChildError as error:
        yield Finding("driver", "fault", f"NVIDIA's driver fails: {error}", "nvidia-smi")
        return
    yield from map(Finding.from_plain, found)


def look_here() -> list[dict[str, Any]]:
    """Findings about driver, GPUs and packages, as plain values."""
    driver, *gpus = _driver()
    packages = _installed()
    cuda = driver.facts.get("cuda")
    return [it.to_plain() for it in (driver, *gpus, *_packages(packages, cuda))]


def pci_devices(folder: Path = Path("/sys/bus/pci/devices")) -> int:
    """Number of NVIDIA's GPUs that Linux lists on the bus, with a driver or without.

    Args:
        folder: folder of the devices in the file system of the kernel.
    """
    return sum(
        _line(it / "vendor") == _NVIDIA and _line(it / "class").startswith(_DISPLAY)
        for it in (folder.iterdir() if folder.is_dir() else ())
    )


def _driver() -> Iterator[Finding]:
    on_bus = pci_devices()
    try:
        driver = find_driver()
    except EngineError as error:
        facts = {"gpus_on_bus": on_bus, "cuda": None, "release": driver_release()}
        state: State = "warning" if on_bus else "note"
        remedy = _driver_command() if on_bus else ""
        bus = f"{counted(on_bus, 'GPU')} of NVIDIA on the PCI bus"
        detail = f"{str(error).partition('. ')[0]}; {bus if on_bus else 'no ' + bus[2:]}"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and "shows no GPU" in str(error):
            state, remedy = "warning", "unset CUDA_VISIBLE_DEVICES"
            detail = f"{detail}; CUDA_VISIBLE_DEVICES is {visible!r}"
        yield Finding("driver", state, detail, remedy, facts)
        return
    cuda, release = "{}.{}".format(*driver.cuda), driver_release()
    facts = {"gpus_on_bus": on_bus, "cuda": cuda, "release": release}
    named = f"NVIDIA's driver {release or 'of unknown release'}"
    yield Finding("driver", "ok", f"{named} runs up to CUDA {cuda}", "", facts)
    for number, capability in enumerate(driver.capabilities):
        name, size = describe_device(number)
        told = None if capability is None else "{}.{}".format(*capability)
        facts = {"name": name, "compute_capability": told, "bytes": size}
        parts = [name or "a GPU", f"compute capability {told or 'not told'}"]
        parts += [f"{size / 2**30:.1f} GiB"] if size else []
        yield Finding(f"GPU {number}", "ok", ", ".join(parts), "", facts)


def _driver_command() -> str:
    """Command that makes a GPU of the machine usable."""
    if any(Path(it).exists() for it in _MARKS_OF_CONTAINERS):
        return "docker run --gpus all IMAGE"
    if shutil.which("ubuntu-drivers"):
        return "ubuntu-drivers install"
    if shutil.which("apt-get"):
        return "apt-get install --yes nvidia-driver"
    return "nvidia-smi"


def _packages(packages: dict[str, str], cuda: str | None) -> Iterator[Finding]:
    """What is wrong with the packages of CUDA, or what they are."""
    wrong = [*_mixed(packages), *_unlike(packages), *_bindings(packages, driver=cuda is not None)]
    if cuda is not None:
        wrong += _newer_than(packages, cuda)
    yield from wrong
    if not wrong:
        named = ", ".join(f"{name} {version}" for name, version in packages.items())
        detail = named or "none are installed"
        yield Finding("CUDA packages", "ok", detail, "", packages)


def _mixed(packages: dict[str, str]) -> Iterator[Finding]:
    """One library for two versions of CUDA."""
    stems: dict[str, list[str]] = {}
    for name in packages:
        if _OF_CUDA.fullmatch(name):
            stems.setdefault(re.sub(r"-cu\d+", "", name), []).append(name)
    for stem, names in stems.items():
        if len(names) > 1:
            detail = f"{' and '.join(names)} are both installed, for two versions of CUDA"
            remedy = uninstall_command(*names[:-1])
            yield Finding(stem, "warning", detail, remedy, {it: packages[it] for it in names})


def _unlike(packages: dict[str, str]) -> Iterator[Finding]:
    """Parts of one library that are of different versions."""
    for extra, family in _FAMILIES.items():
        parts = {name: it for name, it in packages.items() if family.fullmatch(name)}
        if len(set(parts.values())) > 1:
            named = ", ".join(f"{name} {version}" for name, version in parts.items())
            again = install_command(extra, "--force-reinstall")
            yield Finding(min(parts, key=len), "fault", f"parts differ: {named}", again, parts)


def _bindings(packages: dict[str, str], *, driver: bool) -> Iterator[Finding]:
    """NVIDIA's bindings, which every engine of a GPU calls CUDA through."""
    again = upgrade_command(f"cuda-bindings>={_LEAST_BINDINGS}")
    state: State = "fault" if driver else "note"  # without a GPU it has no use
    users = [it for it in packages if it == "onnxruntime-gpu" or it.startswith("tensorrt")]
    version = packages.get("cuda-bindings")
    if version is None and users:
        detail = f"not installed, and {users[0]} is: engines of a GPU call CUDA through it"
        yield Finding("cuda-bindings", state, detail, again, {})
    elif version is not None and numbers(version) < numbers(_LEAST_BINDINGS):
        detail = f"{version} is too old: {_LEAST_BINDINGS} or later is needed"
        yield Finding("cuda-bindings", state, detail, again, {"version": version})


def _newer_than(packages: dict[str, str], cuda: str) -> Iterator[Finding]:
    """Packages for a CUDA that the driver does not run."""
    most = int(cuda.partition(".")[0])
    for name, version in packages.items():
        found = _OF_CUDA.fullmatch(name)
        if found and int(found[1]) > most:
            detail = f"{name} {version} is for CUDA {found[1]}, and the driver runs up to {cuda}"
            yield Finding(name, "fault", detail, _driver_command(), {"version": version})


def _installed() -> dict[str, str]:
    """Versions of the installed packages that have to do with CUDA, by name."""
    from importlib.metadata import distributions  # takes 0.03 s

    found: dict[str, str] = {}
    for it in distributions():  # in the order of sys.path: the first one is imported
        name = re.sub(r"[-_.]+", "-", it.metadata["Name"] or "").lower()
        if re.fullmatch(r"tensorrt.*|nvidia-.*|cuda-bindings|onnxruntime-gpu", name):
            found.setdefault(name, it.version)
    return dict(sorted(found.items()))


def _line(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
