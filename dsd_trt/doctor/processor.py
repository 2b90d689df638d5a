"""The processor: its instructions, and what is switched off."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from dsd_trt.doctor.finding import Finding

_LIMIT = "ONEDNN_MAX_CPU_ISA"
# Flags of Linux by the name that people know; x86-64, then 64-bit Arm.
FEATURES = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 BF16": "avx512_bf16",
    "AMX": "amx_tile",
    "AMX BF16": "amx_bf16",
    "NEON": "asimd",
    "SVE": "sve",
    "BF16": "bf16",
}
_X86 = ("x86_64", "amd64")


def examine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Finding]:
    """The processor that this process runs on.

    Args:
        cpuinfo: file in which Linux describes the processors.
    """
    machine = platform.machine()
    name, flags = _described(cpuinfo)
    name = name or platform.processor() or machine
    has = [it for it, flag in FEATURES.items() if flag in flags]
    facts = {"name": name, "architecture": machine, "features": has, "known": bool(flags)}
    if not flags:
        yield Finding("processor", "ok", f"{name}, {machine}; its features are not told", "", facts)
    elif machine.lower() in _X86 and "AVX2" not in has:
        yield Finding(
            "processor",
            "warning",
            f"{name} has no AVX2, which the kernel of matrix mode needs; engines are slow on it",
            "dsd-trt score IMAGES TEXTS --mode pair --engine onnxruntime",
            facts,
        )
    else:
        yield Finding("processor", "ok", f"{name}: {', '.join(has) or machine}", "", facts)
    if limit := os.environ.get(_LIMIT):
        yield Finding(
            _LIMIT,
            "note",
            f"{_LIMIT}={limit} limits the instructions that OpenVINO uses",
            f"unset {_LIMIT}",
            {"value": limit},
        )


def _described(cpuinfo: Path) -> tuple[str, set[str]]:
    """Name and flags of the first processor; empty where the system does not tell."""
    name, flags = "", set[str]()
    try:
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return name, flags
    for line in lines:
        key, _, value = (it.strip() for it in line.partition(":"))
        if key == "model name" and not name:
            name = value
        elif key in ("flags", "Features") and not flags:
            flags = set(value.split())
    return name, flags
