"""The device PyTorch computes on."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


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
