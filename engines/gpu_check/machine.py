"""Facts about the machine that a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import platform
import re

from dsd_trt.engine.cuda import compute_capability, device_name, memory_size
from dsd_trt.engine.driver import driver_release, find_driver
from dsd_trt.engines.gpu_check.figures import Gpu
from dsd_trt.errors import EngineError

_COMPUTES = re.compile(
    r"(dsd-trt|numpy|torch|triton|diffusers|transformers|onnx|onnxruntime.*|tensorrt.*"
    r"|cuda-bindings|nvidia-.*)"
)


def describe_gpu(device: int) -> Gpu:
    """The GPU of this number.

    Raises:
        EngineError: this machine has no GPU, or no driver.
    """
    capability = compute_capability(device)
    try:
        cuda = "{}.{}".format(*find_driver().cuda)
    except EngineError:
        cuda = None
    name, size = device_name(device), memory_size(device)
    return Gpu(device, name, capability, size, driver_release(), cuda)


def describe_host() -> str:
    """Operating system, architecture and Python version."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


def computing_versions() -> dict[str, str]:
    """Versions of the installed libraries that compute on a GPU or describe models, by name.

    Of a distribution that is installed twice, the one that is imported counts.
    """
    found: dict[str, str] = {}
    for it in importlib.metadata.distributions():  # in the order of sys.path
        name = re.sub(r"[-_.]+", "-", it.metadata["Name"] or "").lower()
        if _COMPUTES.fullmatch(name):
            found.setdefault(name, it.version)
    return dict(sorted(found.items()))
