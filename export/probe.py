"""Images and texts for comparing engines.

Imports no torch, because the lean runtime is measured on them as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsd_trt.train.shapes.caption import caption
from dsd_trt.train.shapes.render import draw
from dsd_trt.train.shapes.scene import sample_scene

IMAGES, QUICK_IMAGES = 16, 2
"""Numbers of images, and of texts, of a whole probe and of a quick one."""


@dataclass(frozen=True)
class Probe:
    """Images, texts and noise levels on which engines are compared.

    Attributes:
        pixels: RGB images, uint8 (images, H, W, 3).
        texts: one text per image that describes it.
        levels: indices of the noise levels to compare at.
    """

    pixels: NDArray[np.uint8]
    texts: tuple[str, ...]
    levels: tuple[int, ...]


def draw_probe(
    resolution: int, levels: int, *, count: int = IMAGES, quick: bool = False, seed: int = 20
) -> Probe:
    """Draw scenes with captions; the same for every checkpoint of a resolution.

    Args:
        resolution: height and width of the images, in pixels.
        levels: number of noise levels of the bundle.
        count: number of images and of texts.
        quick: whether to use at most 2 images and 2 texts, at the first level: 4 passes instead of
            a thousand, for checkpoints whose passes take seconds.
        seed: seed of the random scenes.
    """
    count = min(count, QUICK_IMAGES) if quick else count
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    pixels = np.stack([draw(scene, rng, resolution).pixels for scene in scenes])
    return Probe(
        pixels,
        tuple(caption(scene, rng, name_relation=True) for scene in scenes),
        tuple(range(1 if quick else levels)),
    )
