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
from dsd_trt.installation import (
    install_command,
    reinstall_command,
    uninstall_command,
    upgrade_command,
)

_NVIDIA = "0x10de"
_DISPLAY = "0x03"  # class of display controllers and 3D accelerators
_MARKS_OF_CONTAINERS = ("/.dockerenv", "/run/.containerenv")
_LEAST_BINDINGS = "12.8"
_LEAST_CUDA = 12  # oldest major version that the bindings and engines of a GPU support
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
    if _in_container():
        return "docker run --gpus all IMAGE"
    return _upgrade_command() or "nvidia-smi"


def _upgrade_command() -> str:
    """Command that installs the newest driver; "" where none is known to do so from here."""
    if _in_container():  # the driver is the machine's
        return ""
    if shutil.which("ubuntu-drivers"):
        return "ubuntu-drivers install"
    return "apt-get install --yes nvidia-driver" if shutil.which("apt-get") else ""


def _in_container() -> bool:
    return any(Path(it).exists() for it in _MARKS_OF_CONTAINERS)


def _packages(packages: dict[str, str], cuda: str | None) -> Iterator[Finding]:
    """What is wrong with the packages of CUDA, or what they are."""
    most = None if cuda is None else int(cuda.partition(".")[0])
    wrong = [*_mixed(packages, most), *_unlike(packages)]
    wrong += _bindings(packages, driver=cuda is not None)
    if cuda is not None:
        wrong += _newer_than(packages, cuda)
    yield from wrong
    if not wrong:
        named = ", ".join(f"{name} {version}" for name, version in packages.items())
        detail = named or "none are installed"
        yield Finding("CUDA packages", "ok", detail, "", packages)


def _mixed(packages: dict[str, str], most: int | None) -> Iterator[Finding]:
    """One library for two versions of CUDA, of which one is kept: the newest that the driver runs.

    Args:
        packages: versions of packages by name.
        most: newest major version of CUDA that the driver runs; None without a driver.
    """
    for stem, names in _by_library(packages).items():
        fitting = [it for cuda, it in sorted(names.items()) if most is None or cuda <= most]
        if len(names) == 1 or not fitting:  # where none fits, that is the fault
            continue
        kept = fitting[-1]
        others = [it for it in names.values() if it != kept]
        detail = f"{' and '.join(names.values())} are both installed, for two versions of CUDA"
        detail += ", and have overwritten each other's files"
        again = reinstall_command(f"{kept}=={packages[kept]}")
        facts = {it: packages[it] for it in names.values()}
        remedy = f"{uninstall_command(*others)} && {again}"
        yield Finding(stem, "warning", detail, remedy, facts)


def _by_library(packages: dict[str, str]) -> dict[str, dict[int, str]]:
    """Names of packages by the major version of CUDA that they are for, by library."""
    found: dict[str, dict[int, str]] = {}
    for name in packages:
        if of_cuda := _OF_CUDA.fullmatch(name):
            stem = re.sub(r"-cu\d+", "", name)
            found.setdefault(stem, {})[int(of_cuda[1])] = name
    return found


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
    """Libraries that are installed only for a CUDA that the driver does not run."""
    most = int(cuda.partition(".")[0])
    newer = {
        name: found
        for names in _by_library(packages).values()
        if min(names) > most  # else another one of them is kept
        for found, name in names.items()
    }
    if not newer:
        return
    older = {re.sub(r"-cu\d+(?:-bindings|-libs)?", f"-cu{most}", it) for it in newer}
    remedy = f"{uninstall_command(*newer)} && {upgrade_command(*sorted(older))}"
    advice = ""
    if most < _LEAST_CUDA:  # no library that is supported is for this driver
        advice, remedy = "; upgrade the driver", _upgrade_command()
        if _in_container():
            advice += " of the machine that runs this container"
    for name, version in ((it, packages[it]) for it in newer):
        detail = f"{name} {version} is for CUDA {newer[name]}, and the driver runs up to {cuda}"
        yield Finding(name, "fault", f"{detail}{advice}", remedy, {"version": version})


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
