"""Telemetry of libraries, turned off before any of them is imported.

Libraries read their setting once, on import, so the package sets it first of all. The user's own
setting stays: a variable with a value, or consent given to OpenVINO.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLES = {
    # onnxruntime 1.32 stores an identifier and a database of events in the user's cache folder, and
    # sends them from ten seconds on. Its own function comes after the import, which is too late.
    "ORT_DISABLE_TELEMETRY": "1",
    # huggingface_hub 2.4 asks for a list of coding agents, and names one and PyTorch's version in
    # every request; hf_xet 1.8, which transfers its files, reports how each transfer went.
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def turn_off() -> None:
    """Set all unset or empty `VARIABLES`, and block the import of openvino_telemetry.

    OpenVINO 2026.4 reports each of its imports through that package, which no variable turns off.
    It works without the package.
    """
    for name, value in VARIABLES.items():
        if not os.environ.get(name):
            os.environ[name] = value
    if not _agreed_to_openvino():
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _agreed_to_openvino() -> bool:
    """Whether the user has opted in with openvino_telemetry's `opt_in_out --opt_in`."""
    try:
        return (Path.home() / "intel" / "openvino_telemetry").read_text().strip() == "1"
    except (OSError, RuntimeError, ValueError):  # no such file, no home folder, not a text
        return False
