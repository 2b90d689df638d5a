"""The libraries that ONNX Runtime's CUDA provider needs, found and loaded.

ONNX Runtime falls back to the processor without an error when one of them is missing, so everything
is looked for before a session is opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from dsd_trt.engine.driver import Driver, find_driver, require_device
from dsd_trt.engine.elf import folder_of, why_cut
from dsd_trt.engine.onnxruntime.editions import installed_editions, package_folder
from dsd_trt.errors import EngineError
from dsd_trt.installation import install_command, uninstall_command

PROVIDER = "CUDAExecutionProvider"
PACKAGE = "onnxruntime-gpu"

_LEAST = (1, 31)  # version of the package
_LEAST_OF_CUDA_13 = (7, 5)  # compute capability, Turing's


@functools.cache
def load_cuda(device: int) -> ModuleType:
    """Import ONNX Runtime with everything that its CUDA provider needs.

    CUDA and cuDNN are taken from NVIDIA's wheels, from PyTorch's, or from where the system looks;
    LD_LIBRARY_PATH is not needed.

    Args:
        device: number of the GPU, from 0.

    Returns:
        The module.

    Raises:
        EngineError: driver, GPU, package or libraries are missing, or do not fit together. The
            message names all that is missing, and the command that installs it.
    """
    if not sys.platform.startswith("linux"):
        raise EngineError(f"onnxruntime-cuda is for Linux, and this is {sys.platform}")
    missing: list[str] = []
    driver = None
    try:
        driver = find_driver()
        require_device(driver, device)
    except EngineError as error:
        missing.append(str(error))
    try:
        require_package()
        module = _imported()
        provider = find_provider(module)
        if (cuda := _cuda_of(module)) is not None:
            if driver is not None:
                _require_fit(module, cuda, driver, device)
            require_libraries(module, cuda[0])
        if driver is not None:
            require_provider(module, provider)
    except EngineError as error:
        missing.append(str(error))
    if missing:
        raise EngineError("onnxruntime-cuda cannot be used here: " + "; ".join(missing))
    return module


def _require_fit(module: Any, cuda: tuple[int, int], driver: Driver, device: int) -> None:
    """Refuse a driver or a GPU that is too old for the CUDA that the package was built with."""
    if driver.cuda[0] < cuda[0]:
        raise EngineError(
            f"{PACKAGE} {module.__version__} needs CUDA {cuda[0]}.{cuda[1]}, and NVIDIA's "
            f"driver runs up to {driver.cuda[0]}.{driver.cuda[1]}. Install a newer driver"
        )
    capability = driver.capabilities[device] if device < driver.gpus else None
    if capability is not None and cuda[0] >= 13 and capability < _LEAST_OF_CUDA_13:
        raise EngineError(
            f"GPU {device} has compute capability {capability[0]}.{capability[1]}, and CUDA 13 "
            "begins at 7.5. Use another GPU: --device N"
        )


def require_package() -> None:
    """Refuse an `onnxruntime-gpu` that is missing or shares its folder with another edition.

    Raises:
        EngineError: it is not installed, a file of it is cut short, or another edition has
            overwritten or removed its files.
    """
    if (package := package_folder()) is None:
        raise EngineError(f"{PACKAGE} is not installed. Install it with: {install_command('cuda')}")
    if not (package / "__init__.py").is_file():  # which uninstalling another edition leaves
        raise EngineError(f"{PACKAGE} is incomplete ({package} has no code). Again: {_again()}")
    if len(editions := installed_editions(package)) > 1:
        raise EngineError(
            f"{' and '.join(map(str, editions))} are both installed, and have overwritten each "
            f"other's files. Remove both and install one: {_again()}"
        )
    if (why := why_cut(package / "capi", "*.so*")) is not None:
        raise EngineError(f"{PACKAGE} is incomplete ({why}). Again: {_again()}")


def _imported() -> ModuleType:
    try:
        import onnxruntime
        import onnxruntime.capi.build_and_package_info
    except Exception as error:  # broken packages raise anything
        raise EngineError(f"{PACKAGE} does not load ({error}). Again: {_again()}") from error
    version = onnxruntime.__version__
    if PROVIDER not in onnxruntime.get_available_providers():
        raise EngineError(
            f"onnxruntime {version} is installed, which has no CUDA. Install {PACKAGE} in its "
            f"place, which also runs on the processor: {_again()}"
        )
    if tuple(int(it) for it in re.findall(r"\d+", version)[:2]) < _LEAST:
        # Before it, a replayed CUDA graph may read buffers that were reused since its recording.
        raise EngineError(
            f"{PACKAGE} {version} is too old: {_LEAST[0]}.{_LEAST[1]} or later is needed. Install "
            f"it with: {_again()}"
        )
    module: ModuleType = onnxruntime
    return module


def _cuda_of(module: Any) -> tuple[int, int] | None:
    """CUDA version that the package was built with, as (major, minor), if it says so."""
    from onnxruntime.capi import build_and_package_info

    found = re.match(r"(\d+)\.(\d+)", getattr(build_and_package_info, "cuda_version", "") or "")
    return (int(found[1]), int(found[2])) if found else None


def require_libraries(module: Any, cuda: int) -> None:
    """Load CUDA and cuDNN.

    Args:
        module: the imported package, which loads most of them itself.
        cuda: CUDA's major version, such as 13.

    Raises:
        EngineError: a library is not found or broken; the message names it, and other versions
            that are there.
    """
    wrong = {name: why for name in libraries(cuda) if (why := _load(name)) is not None}
    _load(f"libnvrtc.so.{cuda}")  # which cuDNN may use
    if not wrong:
        return
    stems = {name.partition(".so")[0] for name in wrong}
    others = sorted(
        {
            it.name
            for folder in _folders()
            for it in folder.glob("libcu*.so.*")
            if it.name.partition(".so")[0] in stems and it.name not in wrong
        }
    )
    found = f"Found instead: {', '.join(others)}. " if others else ""
    broken = "".join(f"{name} does not load ({why}). " for name, why in wrong.items() if why)
    state = "broken" if all(wrong.values()) else "not found"
    raise EngineError(
        f"{', '.join(wrong)} of CUDA {cuda} and cuDNN 9 {'is' if len(wrong) == 1 else 'are'} "
        f"{state}, which {PACKAGE} {module.__version__} needs. {found}{broken}Install them with: "
        f"{install_command('cuda', *(['--force-reinstall'] if broken else []))}"
    )


def _again() -> str:
    """Command that replaces every edition of ONNX Runtime by the one for CUDA."""
    return f"{uninstall_command('onnxruntime', PACKAGE)} && {install_command('cuda')}"


def find_provider(module: Any) -> tuple[Path, Path]:
    """The provider's two libraries, in the order in which they are loaded.

    Args:
        module: package of the library, already imported.

    Raises:
        EngineError: one is missing, as after an installation that was broken off. A session would
            run on the processor.
    """
    folder = Path(module.__file__).parent / "capi"
    shared, cuda = (folder / f"libonnxruntime_providers_{it}.so" for it in ("shared", "cuda"))
    if absent := [str(it) for it in (shared, cuda) if not it.is_file()]:
        raise EngineError(
            f"{PACKAGE} {module.__version__} is incomplete: {', '.join(absent)} is missing. "
            f"Again: {_again()}"
        )
    return shared, cuda


def require_provider(module: Any, provider: tuple[Path, Path]) -> None:
    """Load the provider itself, which a session would do without giving its reason for failing.

    Args:
        module: package of the library, already imported.
        provider: libraries of the provider, from `find_provider`.

    Raises:
        EngineError: it does not load, for example because the driver lacks a function.
    """
    for path, mode in zip(provider, (ctypes.RTLD_GLOBAL, ctypes.RTLD_LOCAL), strict=True):
        try:
            ctypes.CDLL(str(path), mode=mode)
        except OSError as error:
            advice = f"Again: {_again()}"
            if re.search(r"undefined symbol: cu[A-Z]", str(error)):  # a function of the driver
                advice = "Install a newer driver, or an older package"
            elif "undefined symbol" in str(error):
                advice = (
                    "A library of CUDA that was found is another one than the provider was built "
                    f"with: look at LD_LIBRARY_PATH, or install them again: "
                    f"{install_command('cuda', '--force-reinstall')}"
                )
            raise EngineError(
                f"the CUDA provider of {PACKAGE} {module.__version__} does not load ({error}). "
                f"{advice}"
            ) from error


def libraries(cuda: int) -> tuple[str, ...]:
    """Names of the libraries that the provider loads, each after those that it needs itself.

    cuDNN is among them although the provider starts without it: it is loaded by the first
    convolution.

    Args:
        cuda: CUDA's major version, such as 13.
    """
    return (
        f"libcudart.so.{cuda}",
        f"libcublasLt.so.{cuda}",
        f"libcublas.so.{cuda}",
        "libcurand.so.10",
        "libcudnn.so.9",
    )


def _load(name: str) -> str | None:
    """Load a library: the copy in use, one of the packages', or one where the system looks.

    Returns:
        None if it is loaded; else why a file of the name does not load, empty if there is none.
    """
    with contextlib.suppress(OSError):  # a second copy beside the one in use would not be used
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        return None
    why = ""
    for place in (*(folder / name for folder in _folders()), name):
        if isinstance(place, Path) and not place.is_file():
            continue
        folder = place.parent if isinstance(place, Path) else folder_of(name)
        # The parts of cuDNN, which it loads itself, lie beside it: libcudnn_ops.so.9
        cut = None if folder is None else why_cut(folder, name.replace(".so", "*.so"))
        if cut is not None:
            why = why or cut
            continue
        try:
            ctypes.CDLL(str(place))
        except OSError as error:
            why = why or ("" if "No such file" in str(error) else str(error))
        else:
            return None
    return why


def _folders() -> Iterator[Path]:
    """Folders of installed packages that may hold CUDA: NVIDIA's wheels', then PyTorch's own."""
    for entry in map(Path, sys.path):
        if not entry.is_absolute():  # the folder the process happens to be in
            continue
        yield from sorted((entry / "nvidia").glob("*/lib"))
        yield from (it for it in (entry / "torch" / "lib",) if it.is_dir())
