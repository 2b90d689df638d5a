"""The device PyTorch computes on."""

from __future__ import annotations

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from dsd_trt.errors import counted


def process_state() -> PartialState:
    """Rank and device of this process, as `Accelerator` determines them."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def best_device() -> torch.device:
    """The GPU of this process if it has one, else the CPU.

    ACCELERATE_USE_CPU=1 always selects the CPU.
    Models that PyTorch scores with or trains are on this device. Encoded images and texts stay in
    main memory.
    """
    device: torch.device = process_state().device
    return device


def agreed(decision: bool) -> bool:
    """The main process's decision, for all processes.

    Their own may differ in a tie's last digit, and one would then wait for the others for ever.
    """
    decisions = [decision]
    if process_state().num_processes > 1:
        broadcast_object_list(decisions)
    return decisions[0]


def arithmetic() -> str:
    """What the last digits of results depend on, such as "PyTorch 2.11.0, 2 threads of AVX512".

    The order in which a sum is formed differs between versions, devices, and numbers of threads and
    processes.
    """
    if (device := best_device()).type == "cuda":
        on = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        threads = counted(torch.get_num_threads(), "thread")
        on = f"{threads} of {torch.backends.cpu.get_cpu_capability()}"
    else:
        on = device.type
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    processes = f", {dist.get_world_size()} processes" if together else ""
    return f"PyTorch {torch.__version__}, {on}{processes}"
