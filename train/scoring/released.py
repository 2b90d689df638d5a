"""Import of checkpoints of the research code that was released with the paper.

Such a checkpoint is a `pytorch_model.bin` of low-rank updates (LoRA, W' = W + up @ down). They
update the query, key, value and output matrices of every self- and cross-attention layer of
Stable Diffusion 2.1's U-Net.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsd_trt.errors import InputError
from dsd_trt.train.pickles import pickle_fault
from dsd_trt.train.scoring.adapter import Adapter

_KEY = re.compile(
    r"(?P<block>(down_blocks|mid_block|up_blocks)\.[\w.]+\.attn[12])"
    r"\.processor\.to_(?P<matrix>q|k|v|out)_lora\.(?P<part>up|down)\.weight"
)
_MATRICES = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}


def read_released(path: Path) -> Adapter:
    """Turn a checkpoint of the released code into an adapter.

    No code in the file is executed: the unpickler accepts tensors and plain containers alone. The
    file does not record its base model. Names and sizes are checked when the adapter is merged.

    Args:
        path: path of a `pytorch_model.bin` that the released code wrote.

    Returns:
        An adapter for the score "released", whose low-rank updates export merges into the
        weights. Other scores may be chosen as well.

    Raises:
        InputError: there is no such file, the released code did not write it, or half of a
            low-rank update is missing.
    """
    changes = {}
    for key, value in _tensors(path).items():
        found = _KEY.fullmatch(key)
        if found is None or value.dim() != 2:
            raise InputError(
                f"{path}: {key!r} is not what the released code writes; expected are LoRA matrices "
                "such as 'mid_block.attentions.0.transformer_blocks.0.attn2.processor."
                "to_q_lora.up.weight'"
            )
        layer = f"{found['block']}.{_MATRICES[found['matrix']]}"
        changes[f"{layer}.{found['part']}"] = value.float()
    for name in changes:
        layer, _, part = name.rpartition(".")
        other = f"{layer}.{'down' if part == 'up' else 'up'}"
        if other not in changes:
            raise InputError(f"{path}: it holds {name} without {other}")
        if changes[f"{layer}.up"].shape[1] != len(changes[f"{layer}.down"]):
            raise InputError(f"{path}: the two matrices of {layer} are of different rank")
    if not changes:
        raise InputError(f"{path} holds no tensors")
    return replace(
        Adapter.unchanged("released"),
        training={"imported": path.name, "tensors": len(changes)},
        merged=changes,
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that it did not write
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except Exception as error:  # fed with junk, an unpickler may raise anything
        raise InputError(
            f"{path} cannot be loaded as a checkpoint of tensors alone: {pickle_fault(error)}. "
            "Give the pytorch_model.bin that the released code wrote"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise InputError(f"{path} does not hold tensors by name")
    return content
