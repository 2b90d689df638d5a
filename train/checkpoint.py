"""Training state on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; a kill leaves the previous file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    unfinished.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read training state, or None where there is none."""
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)
