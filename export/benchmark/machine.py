"""Description of the machine, and its peak speed of matrix multiplication."""

from __future__ import annotations

import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dsd_trt.cores import usable_cores
from dsd_trt.errors import counted

_SIDE = 2048
_ROUNDS = 7


def describe_machine() -> str:
    """One line with processor, cores this process may use, library versions and date."""
    names = ("dsd-trt", "torch", "onnxruntime", "openvino")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{_processor()}, {counted(usable_cores(), 'core')}, {platform.system()}, Python "
        f"{platform.python_version()}, {versions}; {date.today().isoformat()}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def matmul_peaks() -> dict[str, float]:
    """Peak MAC/s of a large matrix product, by precision: "fp32" and, if supported, "bf16".

    The faster of OpenVINO's and PyTorch's kernels counts, so that every contender is measured
    against the same peak.
    """
    peaks = {"fp32": max(_openvino("f32"), _torch("float32"))}
    from dsd_trt.engine.openvino.graph import computes_bf16  # imports openvino

    if computes_bf16():
        peaks["bf16"] = max(_openvino("bf16"), _torch("bfloat16"))
    return peaks


def _openvino(precision: str) -> float:
    import openvino as ov
    from openvino import opset13 as ops

    a, b = (ops.parameter([_SIDE, _SIDE], np.float32) for _ in range(2))
    model = ov.Model([ops.matmul(a, b, False, False)], [a, b])
    request = (
        ov.Core()
        .compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
        .create_infer_request()
    )
    values = np.random.default_rng(0).normal(size=(_SIDE, _SIDE)).astype(np.float32)
    return _best(lambda: request.infer([values, values], share_inputs=True))


def _torch(precision: str) -> float:
    import torch

    values = torch.randn(_SIDE, _SIDE).to(getattr(torch, precision))
    return _best(lambda: values @ values)


def _best(run: object) -> float:
    """MAC/s of the fastest of several products of (_SIDE, _SIDE) matrices."""
    assert callable(run)
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(_SIDE**3 / min(seconds))
