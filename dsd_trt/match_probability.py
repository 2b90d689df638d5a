"""Match probabilities of scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.manifest import Calibration

_AT_ONCE = 2**16  # scores whose float64 logits are held at once


def match_probability(
    scores: NDArray[np.float32], calibration: Calibration | None
) -> NDArray[np.float32]:
    """Match probability sigmoid(a s + b), computed with tanh, which cannot overflow.

    NaN where there is no score, and everywhere without a calibration.
    """
    probability = np.full(scores.shape, np.nan, np.float32)
    if calibration is None:
        return probability
    flat, out = scores.reshape(-1), probability.reshape(-1)
    for start in range(0, len(flat), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        logit = calibration.a * flat[part].astype(np.float64) + calibration.b
        out[part] = 0.5 + 0.5 * np.tanh(logit / 2)
    return probability
