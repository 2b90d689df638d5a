"""Reading back what was written, and scoring with it, before it takes another bundle's place."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsd_trt import Scorer
from dsd_trt.bundle.folder import read_bundle
from dsd_trt.errors import ModelError

_TEXTS = ("a red circle", "two blue squares left of a star")


def require_scores(folder: Path, advice: str) -> None:
    """Open a bundle as any runtime would, every file verified, and score a picture of noise.

    One noise level is scored: a few passes of the U-Net, besides compiling.

    Args:
        folder: of the bundle.
        advice: what to do where it cannot be used.

    Raises:
        BundleError: it cannot be read.
        EngineError: no engine is installed, or the one that is refuses it.
        ModelError: a score is not finite.
    """
    bundle = read_bundle(folder)
    side = bundle.manifest.preprocessing.resolution
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    level = bundle.manifest.method.noise_levels.fractions[0]
    with Scorer(bundle, mode="pair") as scorer:
        result = scorer.score([picture], _TEXTS, [level])
    if result.errors:
        raise ModelError(f"what was written scores nothing: {result.errors[0].reason} {advice}")
