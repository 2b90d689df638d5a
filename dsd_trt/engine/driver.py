"""NVIDIA's driver, asked through its own library: no package has to be installed for it."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from dsd_trt.engine.elf import folder_of, why_cut
from dsd_trt.errors import EngineError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_RELEASE = Path("/proc/driver/nvidia/version")
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True)
class Driver:
    """A driver with at least one GPU.

    Attributes:
        cuda: newest CUDA version that the driver runs, as (major, minor).
        capabilities: compute capability of each GPU that this process sees, as (major, minor);
            None where the driver does not tell.
    """

    cuda: tuple[int, int]
    capabilities: tuple[tuple[int, int] | None, ...]

    @property
    def gpus(self) -> int:
        """Number of GPUs that this process sees."""
        return len(self.capabilities)


def find_driver() -> Driver:
    """The driver of this machine, asked once a process.

    Raises:
        EngineError: there is no driver, it does not start, or this process sees no GPU.
    """
    found = _asked()
    if isinstance(found, str):
        raise EngineError(found)
    return found


@functools.cache
def _asked() -> Driver | str:
    """The driver, or what is wrong with it and what to do."""
    try:
        library = _load()
    except OSError as error:
        if "No such file" in str(error) or sys.platform == "win32":
            return (
                f"NVIDIA's driver is not installed ({_LIBRARY} was not found). Install it, in a "
                "container let its GPUs in (docker run --gpus all)"
            )
        return f"NVIDIA's driver does not load ({error}). Install it again"
    version, count = ctypes.c_int(), ctypes.c_int()
    try:
        for what, code in (
            ("cuInit", library.cuInit(0)),
            ("cuDriverGetVersion", library.cuDriverGetVersion(ctypes.byref(version))),
            ("cuDeviceGetCount", library.cuDeviceGetCount(ctypes.byref(count))),
        ):
            if code and code != _NO_DEVICE:
                return (
                    f"NVIDIA's driver does not start ({what} gave {code}). Look at nvidia-smi, "
                    "install the driver again; a forked process has to be spawned instead"
                )
            if code or (what == "cuDeviceGetCount" and count.value < 1):
                return f"NVIDIA's driver shows no GPU to this process. {where_to_look()}"
    except AttributeError as error:
        return f"NVIDIA's driver lacks a function ({error}). Install it again"
    major, rest = divmod(version.value, 1000)
    capabilities = tuple(_capability(library, device) for device in range(count.value))
    return Driver((major, rest // 10), capabilities)


def _load() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        OSError: it is not found, is cut short or does not load.
    """
    folder = folder_of(_LIBRARY)
    if folder is not None and (why := why_cut(folder, _LIBRARY)) is not None:
        raise OSError(why)
    return ctypes.CDLL(_LIBRARY)


def _capability(library: ctypes.CDLL, device: int) -> tuple[int, int] | None:
    values = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        try:
            code = library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        except AttributeError:
            return None
        if code:
            return None
        values.append(value.value)
    return values[0], values[1]


def describe_device(device: int) -> tuple[str | None, int | None]:
    """Name of a GPU and the size of its memory in bytes; None for what the driver does not tell.

    Args:
        device: number of a GPU that `find_driver` counted, from 0.
    """
    name, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    library = _load()
    try:
        named = library.cuDeviceGetName(name, len(name), device) == 0
    except AttributeError:
        named = False
    try:
        sized = library.cuDeviceTotalMem_v2(ctypes.byref(size), device) == 0
    except AttributeError:
        sized = False
    return name.value.decode(errors="replace") if named else None, size.value if sized else None


def has_context(device: int) -> bool:
    """Whether this process uses a GPU already; choosing one that is not used would take memory."""
    try:
        library = _load()
        flags, active = ctypes.c_uint(), ctypes.c_int()
        if library.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)):
            return False
    except (OSError, AttributeError):
        return True
    return bool(active.value)


def why_no_driver() -> str | None:
    """Why no GPU can be used, in a few words; None if one can."""
    try:
        find_driver()
    except EngineError as error:
        return str(error).partition(" (")[0].partition(". ")[0]
    return None


def driver_release() -> str | None:
    """Release of the driver, such as "580.65.06"; None if the system does not say, as on Windows.

    The driver's own library knows only the CUDA version that it runs.
    """
    try:
        said = _RELEASE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", said)
    return found[0] if found else None


def require_device(driver: Driver, device: int) -> None:
    """Refuse a GPU that does not exist.

    Args:
        driver: driver of this machine.
        device: number of the GPU, from 0.

    Raises:
        EngineError: this process sees fewer GPUs.
    """
    if device >= driver.gpus:
        known = "GPU 0" if driver.gpus == 1 else f"GPUs 0 to {driver.gpus - 1}"
        raise EngineError(
            f"there is no GPU {device}: this process sees {known}. Choose another --device. "
            f"{where_to_look()}"
        )


def where_to_look() -> str:
    """What may hide a GPU of the machine from this process."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return "Look at nvidia-smi; a container gets GPUs with docker run --gpus all"
    return f"CUDA_VISIBLE_DEVICES is {value!r} here; nvidia-smi lists all GPUs"
