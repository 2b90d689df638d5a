"""What paths are compared on. Imports no torch: the lean runtime is measured on it as well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_trt.train.shapes.caption import caption
from dsd_trt.train.shapes.render import draw
from dsd_trt.train.shapes.scene import sample_scene


@dataclass(frozen=True)
class Probe:
    """Images and texts to compare paths on.

    Attributes:
        pixels: uint8 (images, H, W, 3).
        texts: one a picture, true of it.
    """

    pixels: NDArray[np.uint8]
    texts: tuple[str, ...]


def draw_probe(resolution: int, count: int = 16, seed: int = 20) -> Probe:
    """Drawn scenes and their captions, the same for every model of a resolution."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    pixels = np.stack([draw(scene, rng, resolution).pixels for scene in scenes])
    return Probe(pixels, tuple(caption(scene, rng, name_relation=True) for scene in scenes))
