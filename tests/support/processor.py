"""What this processor computes in, as found by trying."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as ops


def _computes_bf16() -> bool:
    """Whether OpenVINO compiles a matrix product in BF16 and says so of the processor.

    With oneDNN limited to AVX2 (`make test-avx2`) it says so, and compiles nothing.
    """
    core = ov.Core()
    rows = ops.parameter([4, 64], np.float32)
    product = ops.matmul(rows, ops.constant(np.ones((64, 64), np.float32)), False, False)
    model = ov.Model([product], [rows])
    try:
        core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    except RuntimeError:
        return False
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


BF16 = _computes_bf16()
