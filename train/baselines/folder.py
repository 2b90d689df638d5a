"""The folder of a CLIP, looked at before PyTorch is imported."""

from __future__ import annotations

from pathlib import Path

from dsd_trt.errors import ModelError
from dsd_trt.train.diffusion.weight_files import TRANSFORMERS, find_weights, read_json


def require_clip(folder: str | Path) -> None:
    """Refuse a folder that is no CLIP in transformers' format, by its files alone.

    Raises:
        ModelError: the folder does not exist or holds another kind of model, or a file is missing
            or unreadable.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"no CLIP folder {str(folder)!r}: give a folder in transformers' format")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no CLIP in transformers' format: it has no config.json")
    # transformers would read any other model as a CLIP with random weights.
    if (kind := read_json(folder / "config.json").get("model_type")) != "clip":
        raise ModelError(f"{folder} is no CLIP: its config.json says model_type {kind!r}")
    find_weights(folder, TRANSFORMERS)
