"""Training state on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsd_trt.files import whole


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; a kill leaves the previous file.

    Raises:
        DsdError: the disk is full, or the like; the previous file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # PyTorch's, of a full disk: that it is one it does not say
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_state(path: Path) -> dict[str, Any] | None:
    """Read training state, or None where there is none."""
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)
