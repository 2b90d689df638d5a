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
        levels: indices of the noise levels to compare at.
    """

    pixels: NDArray[np.uint8]
    texts: tuple[str, ...]
    levels: tuple[int, ...]


def draw_probe(
    resolution: int, levels: int, *, count: int = 16, quick: bool = False, seed: int = 20
) -> Probe:
    """Drawn scenes and their captions, the same for every model of a resolution.

    Args:
        resolution: side of the pictures, in pixels.
        levels: how many noise levels there are.
        count: pictures, and texts.
        quick: 2 pictures and 2 texts at the first level, instead of `count` at every one: 4
            passes of the U-Net instead of a thousand, for models whose passes take seconds.
        seed: of the scenes.
    """
    count = 2 if quick else count
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    pixels = np.stack([draw(scene, rng, resolution).pixels for scene in scenes])
    return Probe(
        pixels,
        tuple(caption(scene, rng, name_relation=True) for scene in scenes),
        tuple(range(1 if quick else levels)),
    )
