"""A folder to score: two images, one that is none, and a file of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bundles import RESOLUTION
from PIL import Image


def fill(folder: Path, texts: Sequence[str]) -> None:
    """Write a.png and b.png, which are noise, broken.png and texts.txt."""
    generator = np.random.default_rng(3)
    for name in ("a.png", "b.png"):
        noise = generator.integers(0, 256, (RESOLUTION, RESOLUTION, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "broken.png").write_text("no image")
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
