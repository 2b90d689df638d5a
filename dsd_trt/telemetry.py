"""What libraries report to their makers unasked, turned off before any of them is imported.

They read their setting once, when they are imported, so the package does this first of all. What
the user has set stays: a variable with a value, or OpenVINO's consent.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLES = {
    # onnxruntime 1.32 keeps an identifier and a database of events in the user's cache folder, and
    # sends them from ten seconds on. Its own function comes after the import, which is too late.
    "ORT_DISABLE_TELEMETRY": "1",
    # huggingface_hub 2.4 asks for a list of coding agents, and names one and PyTorch's version in
    # every request; hf_xet 1.8, which transfers its files, reports how each transfer went.
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def turn_off() -> None:
    """Set `VARIABLES` that are not set or empty, and keep openvino_telemetry from being imported.

    OpenVINO 2026.4 reports each import of it through that package, has no variable against it, and
    does without the package where it is not there.
    """
    for name, value in VARIABLES.items():
        if not os.environ.get(name):
            os.environ[name] = value
    if not _agreed_to_openvino():
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _agreed_to_openvino() -> bool:
    """Whether the user has run openvino_telemetry's `opt_in_out --opt_in`."""
    try:
        return (Path.home() / "intel" / "openvino_telemetry").read_text().strip() == "1"
    except (OSError, RuntimeError, ValueError):  # none, no home, not a text
        return False
