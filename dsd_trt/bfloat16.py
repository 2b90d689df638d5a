"""The BF16 guard: BF16 is faster than FP32, and used only if it hardly ever changes the winner.

It also measures the largest difference of a score, by which match probabilities are kept or not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsd_trt.bundle.bfloat16 import MOST_CHANGES, as_percent
from dsd_trt.bundle.folder import Bundle
from dsd_trt.bundle.manifest import Bfloat16
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.probability import Rounding
from dsd_trt.cache import recall, remember
from dsd_trt.couples import draw_couples
from dsd_trt.engine import EngineDescription, find_backend
from dsd_trt.errors import DisagreementError, EngineError
from dsd_trt.log import get_logger
from dsd_trt.pipeline import Pipeline
from dsd_trt.winner import winner_changes

logger = get_logger(__name__)

_LARGE_TEXT_WIDTH = 512  # Stable Diffusion has 768 and more, and its U-Net takes seconds per pass
_BLOCKS = 4  # of a small model; a large one has a single block, at one noise level
_COUPLES = 4  # of a block: 8 images, each scored with 8 texts


def guarded(
    bundle: Bundle, mode: Mode, bf16: Pipeline, memory_budget_mb: float | None
) -> tuple[EngineDescription, Rounding]:
    """Compile for BF16, if it hardly ever changes the winner.

    Args:
        bundle: the verified bundle to score with.
        mode: mode whose scorer is compiled.
        bf16: pipeline that computes in BF16.
        memory_budget_mb: memory for activations, in MiB, as for `Pipeline`.

    Returns:
        Engine description, with the probability that BF16 changes the winner, and what rounding
        does to scores.

    Raises:
        DisagreementError: it changes the winner too often, as for `require_agreement`.
    """
    measured = require_agreement(bundle, mode, bf16, memory_budget_mb)
    description = bf16.compile(mode)
    assert bf16.backend.keeps_order_of is not None
    told = EngineDescription(
        description.engine,
        description.device,
        f"{description.precision} (changes the winner with probability "
        f"{as_percent(measured.winner_changes)})",
    )
    return told, Rounding("BF16", measured.difference, bf16.backend.keeps_order_of)


def require_agreement(
    bundle: Bundle, mode: Mode, bf16: Pipeline, memory_budget_mb: float | None
) -> Bfloat16:
    """Compare BF16 with FP32 once per machine, and refuse BF16 if it changes winners.

    What the export measured is used in its place if it was measured on such a processor with the
    same version of the engine. Older bundles have no such figures, and are compared here.

    Args:
        bundle: the verified bundle to compare on.
        mode: mode whose scorer is compared.
        bf16: pipeline that computes in BF16. If the figures are known, only its image encoder is
            compiled.
        memory_budget_mb: memory for activations, in MiB, as for `Pipeline`.

    Returns:
        What BF16 does to scores.

    Raises:
        DisagreementError: the probability of another winner is above `MOST_CHANGES`, or cannot be
            said, because a score is not finite or all are equal.
    """
    measured = _known(bundle, mode, bf16)
    if measured is None:
        logger.warning(
            "comparing BF16 with FP32, once on this machine: minutes for Stable Diffusion"
        )
        measured = compare_bfloat16(bundle, mode, bf16, memory_budget_mb)
        key = _key(bundle, mode, bf16)
        remember("bf16-winner", key, measured.winner_changes)
        remember("bf16-difference", key, measured.difference)
    if not measured.winner_changes <= MOST_CHANGES:
        raise DisagreementError(
            f"in BF16 {_finding(measured.winner_changes)} (allowed is {as_percent(MOST_CHANGES)}). "
            f"Score in FP32: --engine {bf16.backend.keeps_order_of}"
        )
    return measured


def compare_bfloat16(
    bundle: Bundle, mode: Mode, bf16: Pipeline, memory_budget_mb: float | None
) -> Bfloat16:
    """Score drawn couples of scenes in both precisions.

    Of a small model these are 4 blocks of 8 images and 8 texts at every noise level. Of a large one
    it is one block at one level. Noise that is not averaged over levels is larger.

    Args:
        bundle: the verified bundle to compare on.
        mode: mode whose scorer is compared.
        bf16: pipeline that computes in BF16.
        memory_budget_mb: memory for activations, in MiB, as for `Pipeline`.

    Raises:
        EngineError: the engine that BF16 is compared with is no reference itself.
    """
    large = bundle.manifest.text_width > _LARGE_TEXT_WIDTH
    blocks = 1 if large else _BLOCKS
    rng = np.random.default_rng(0)
    resolution = bundle.manifest.preprocessing.resolution
    couples = [draw_couples(_COUPLES, resolution, rng) for _ in range(blocks)]
    count = len(bundle.manifest.method.noise_levels.fractions)
    levels = np.arange(1 if large else count, dtype=np.int32)
    side = 2 * _COUPLES
    image, text = (places.ravel() for places in np.indices((side, side)))

    def scores(pipeline: Pipeline) -> NDArray[np.float32]:
        """Score every block: (blocks, images, texts)."""
        encoded = [
            (
                pipeline.encode_images([it.pixels for it in block]),
                pipeline.encode_texts([it.caption for it in block]),
            )
            for block in couples
        ]
        if mode == "matrix":
            return np.stack([pipeline.score_matrix(*block, levels) for block in encoded])
        return np.stack(
            [pipeline.score(*block, image, text, levels).reshape(side, side) for block in encoded]
        )

    assert bf16.backend.keeps_order_of is not None
    reference = find_backend(bf16.backend.keeps_order_of).with_threads(bf16.backend.threads)
    if reference.keeps_order_of is not None:
        raise EngineError(
            f"{bf16.backend.name} keeps the order of {reference.name}, whose own order has to be "
            f"checked: name the reference, {reference.keeps_order_of}"
        )
    fp32 = Pipeline(bundle, reference, memory_budget_mb, self_check=bf16.self_check or False)
    expected = scores(fp32)
    fp32.close()  # before the rest of BF16 is compiled: 10 GB each for Stable Diffusion
    found = scores(bf16)
    return Bfloat16(
        winner_changes(found, expected),
        float(np.abs(found - expected).max()),
        str(bf16.image_encoder),
    )


def _finding(changes: float) -> str:
    if np.isnan(changes):
        return (
            "it cannot be said how often another text or image is best: scores are not finite, or "
            "all are equal in FP32"
        )
    return f"another text or image is best with probability {as_percent(changes)}"


def _known(bundle: Bundle, mode: Mode, bf16: Pipeline) -> Bfloat16 | None:
    """What was measured at export on such a processor, or earlier on this one; None if nothing."""
    engine = str(bf16.image_encoder)
    exported = (bundle.manifest.bfloat16 or {}).get(mode)
    if exported is not None and exported.engine == engine:
        return exported
    key = _key(bundle, mode, bf16)
    changes, difference = recall("bf16-winner", key), recall("bf16-difference", key)
    if changes is None or difference is None:
        return None
    return Bfloat16(changes, difference, engine)


def _key(bundle: Bundle, mode: Mode, bf16: Pipeline) -> str:
    # The whole bundle: an adapter input or another token mask changes scores, too.
    backend = bf16.backend
    return (
        f"{bundle.manifest.digest} {mode} {backend.name} against {backend.keeps_order_of}: "
        f"{bf16.image_encoder}"
    )
