"""Augmentation of training images: copies that are moved, turned and scaled a little.

No text becomes false by it: colours stay, left stays left, and what is large stays large. Images
are therefore not mirrored, and scales are close to 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_SHIFT = 0.1  # largest shift, as a fraction of the side
_TURN = math.radians(12)  # largest rotation
_ZOOM = 0.2  # largest logarithm of the scale


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A copy of each image under a random similarity; pixels at the border are repeated.

    Args:
        pixels: RGB images, uint8 (images, H, W, 3).
        generator: random generator of shifts, rotations and scales.

    Returns:
        Copies, uint8 (images, H, W, 3).
    """
    draws = 2 * torch.rand(4, len(pixels), generator=generator) - 1  # in [-1, 1]
    shift = 2 * _SHIFT * draws[:2]  # grid_sample's coordinates span 2
    turn, scale = _TURN * draws[2], torch.exp(_ZOOM * draws[3])
    cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
    # From output to input coordinates, both in [-1, 1]: (images, 2, 3).
    rows = [torch.stack([cos, sin, shift[0]], 1), torch.stack([-sin, cos, shift[1]], 1)]
    images = pixels.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.permute(0, 2, 3, 1).round().to(torch.uint8)
