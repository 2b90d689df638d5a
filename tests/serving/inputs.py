"""What the served repository is asked, and what it accepts."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsd_trt.engines.triton.config import Limits

LIMITS = Limits(
    max_images=8,
    max_texts=12,
    max_pairs=64,
    max_image_bytes=100_000,
    max_image_pixels=90_000,
    max_text_characters=400,
)


UNSCORED = float(np.finfo(np.float32).min)
"""What the documentation says stands where there is no score."""


def encode(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """An image file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()
