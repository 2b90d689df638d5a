"""The libraries of OpenVINO's package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dsd_trt.engine.elf import why_cut
from dsd_trt.engine.openvino.backend import FP32
from dsd_trt.errors import EngineError
from dsd_trt.installation import install_command

# What an engine here loads: no plugins for other devices, and few frontends.
_LOADED = (
    "_pyopenvino*.so",
    "frontend/tensorflow/*.so",
    "libs/libhwloc.so*",
    "libs/libopenvino.so*",
    "libs/libopenvino_auto_batch_plugin.so",
    "libs/libopenvino_intel_cpu_plugin.so",
    "libs/libopenvino_ir_frontend.so*",
    "libs/libopenvino_onnx_frontend.so*",
    "libs/libopenvino_tensorflow_frontend.so*",
    "libs/libtbb*.so*",
)


def require_whole() -> None:
    """Refuse a package with a library that is cut short: loading it may end the process.

    Raises:
        EngineError: there is one; the message names it and the command that installs it again. A
            package that is missing is not refused.
    """
    spec = importlib.util.find_spec("openvino")
    if spec is None or spec.origin is None:
        return
    for pattern in _LOADED:
        if (why := why_cut(Path(spec.origin).parent, pattern)) is not None:
            raise EngineError(
                f"openvino is incomplete ({why}). Again: "
                f"{install_command(FP32.extra, '--force-reinstall')}"
            )
