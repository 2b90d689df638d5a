"""A session of ONNX Runtime's CUDA provider, with the placement of its nodes read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsd_trt.engine.onnxruntime.libraries import PROVIDER
from dsd_trt.errors import EngineError, one_line

WORKSPACE = 2**30
"""Bytes that convolutions may use beside activations."""

SHAPE_OPERATORS = frozenset(
    (
        *("Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Cast", "Range"),
        *("Constant", "ConstantOfShape", "Reshape", "Add", "Sub", "Mul", "Div", "Min", "Max"),
        *("Equal", "Where", "ReduceProd", "Identity", "Expand", "Mod"),
    )
)
"""Operators that shapes are computed with; ONNX Runtime places them on the processor on purpose."""


def open_session(
    ort: Any,
    path: Path,
    device: int,
    memory: int,
    *,
    recorded: bool,
    channels_last: bool = False,
) -> Any:
    """Open a session, and check what it got.

    `session.disable_cpu_ep_fallback` is not set: it refuses every graph that computes a shape,
    which ONNX Runtime always does on the processor. So the placement of each node is read back.

    Args:
        ort: module of ONNX Runtime, from `load_cuda`.
        path: path of the ONNX file.
        device: number of the GPU, from 0.
        memory: memory for weights and activations, in bytes; its arena counts both.
        recorded: whether passes can be recorded as CUDA graphs.
        channels_last: whether convolutions take pixels of all channels together.

    Raises:
        EngineError: the library refuses the graph, or a node that is no shape arithmetic is on the
            processor.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only, which are also raised
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    settings = {
        "device_id": str(device),
        "gpu_mem_limit": str(memory + WORKSPACE),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search times kernels: other bits
        "use_tf32": "0",  # FP32 is FP32
        "enable_cuda_graph": "1" if recorded else "0",
        "prefer_nhwc": "1" if channels_last else "0",
    }
    try:
        session = ort.InferenceSession(path, options, [(PROVIDER, settings)], enable_fallback=0)
    except Exception as error:  # its exceptions share no base class
        raise EngineError(
            f"onnxruntime {ort.__version__} refuses {path} on GPU {device}: {one_line(error, 800)}"
        ) from error
    providers = session.get_providers()
    if not providers or providers[0] != PROVIDER:
        raise EngineError(
            f"onnxruntime {ort.__version__} took {providers} for {PROVIDER}, without an error. "
            "Look at its log (it is on standard error), and at nvidia-smi"
        )
    require_placement(session.get_provider_graph_assignment_info(), path)
    return session


def require_placement(assignment: Any, path: Path) -> None:
    """Refuse a session that computes more than shapes on the processor.

    Args:
        assignment: subgraphs with their providers, as a session reports them.
        path: path of the ONNX file.

    Raises:
        EngineError: an operator that computes is elsewhere, or nothing is on the GPU.
    """
    elsewhere = sorted(
        {
            node.op_type
            for part in assignment
            if part.ep_name != PROVIDER
            for node in part.get_nodes()
            if node.op_type not in SHAPE_OPERATORS
        }
    )
    if elsewhere or not any(part.ep_name == PROVIDER for part in assignment):
        what = ", ".join(elsewhere) or "all of it"
        raise EngineError(
            f"onnxruntime has no CUDA kernel for a part of {path.name}, and would run it on the "
            f"processor: {what}. Use a newer onnxruntime-gpu, or export the bundle again"
        )
