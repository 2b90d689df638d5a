"""Where PyTorch computes."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process_state() -> PartialState:
    """This process among those an accelerate launcher started, asked as `Accelerator` asks."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def best_device() -> torch.device:
    """The GPU of this process where there is one, the CPU where ACCELERATE_USE_CPU=1 asks for it.

    Every model that is scored or trained by PyTorch lies there; what is kept of many images and
    texts stays in main memory.
    """
    device: torch.device = process_state().device
    return device
