"""A test case of a decoder, and the arithmetic that formats have in common."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Samples = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One file and what a decoder should make of it."""

    name: str
    content: bytes
    expected: Pixels | str  # (height, width, 3), or a part of the reason for the refusal
    tolerance: int = 0  # in grey levels; for lossy formats and inexact arithmetic


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def scaled(samples: Samples, white: int) -> Pixels:
    """Scale samples from [0, white] to 8 bits, rounded."""
    return np.floor(samples.astype(np.float64) * 255 / white + 0.5).astype(np.uint8)


def on_white(color: Samples, alpha: Samples) -> Pixels:
    """Composite on white: (height, width, channels) and alpha (height, width)."""
    share = alpha.astype(np.float64)[..., None] / 255
    return np.floor(color * share + 255 * (1 - share) + 0.5 + 1e-9).astype(np.uint8)


def as_rgb(grey: Samples) -> Pixels:
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=2)


def random_samples(depth: int, *shape: int) -> NDArray[np.int64]:
    return np.random.default_rng(depth * 31 + sum(shape)).integers(0, 1 << depth, shape)


def smooth(height: int, width: int, channels: int) -> Pixels:
    """A smooth image (height, width, channels), which lossy formats reproduce closely."""
    y, x = np.indices((height, width))
    waves = [128 + 90 * np.sin((x + c * y) / (14 + 3 * c)) for c in range(channels)]
    return np.stack(waves, axis=2).astype(np.uint8)


def damaged(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
