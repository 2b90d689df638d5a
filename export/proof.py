"""Read a written bundle back and score with it, before it replaces another bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsd_trt import Scorer
from dsd_trt.bundle.folder import read_bundle
from dsd_trt.errors import ModelError

_TEXTS = ("a red circle", "two blue squares left of a star")


def require_scores(folder: Path, advice: str) -> None:
    """Open a bundle as any runtime would, verify every file, and score an image of noise.

    One noise level is scored, which costs compilation and a few passes of the U-Net.

    Args:
        folder: folder of the bundle to try.
        advice: sentence for the error message that says what to do next.

    Raises:
        BundleError: the bundle cannot be read.
        EngineError: no engine is installed, or the installed one refuses the bundle.
        ModelError: a score is not finite.
    """
    bundle = read_bundle(folder)
    side = bundle.manifest.preprocessing.resolution
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    level = bundle.manifest.method.noise_levels.fractions[0]
    with Scorer(bundle, mode="pair") as scorer:
        stream = scorer.stream([picture], _TEXTS, [level])
        errors = [*stream.errors, *(it for image in stream.images for it in image.errors)]
    if errors:
        raise ModelError(f"the written bundle scores nothing: {errors[0].reason} {advice}")
