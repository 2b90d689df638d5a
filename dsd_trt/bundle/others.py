"""Folders that are taken for bundles: what they are, and the command that takes them."""

from __future__ import annotations

import shlex
from pathlib import Path

OTHERS = {
    "index.json": "an index of images: dsd-trt score {0} TEXTS",
    "adapter.json": "an adapter, a part of a bundle. Export it first, with the model it was "
    "trained for: dsd-trt export --model MODEL --adapter {0} --out BUNDLE",
    "model_index.json": "a checkpoint, which bundles are made from: dsd-trt export --model {0} "
    "--out BUNDLE",
    "training.ckpt": "an unfinished training of an adapter: repeat its command to continue",
    "dsd_score": "a model repository for Triton, which has its bundle's files in "
    "{0}/dsd_score/1: tritonserver --model-repository {0}",
    "engine.json": "a plan, a part of a bundle: inspect the bundle two folders above",
}
"""Other folders by a file in them: what they are, with {0} for the folder in a command."""


def other_folder(folder: Path) -> str | None:
    """What a folder without `bundle.json` is instead, for messages; None if that is not known."""
    for name, what in OTHERS.items():
        if (folder / name).exists():
            return what.format(shlex.quote(str(folder)))
    return None
