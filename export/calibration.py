"""The calibration of an exported bundle: the adapter's, where it was fitted to the same score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dsd_trt.bundle.manifest import Calibration, Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.probability import MOST_SHIFT, largest_shift
from dsd_trt.errors import counted
from dsd_trt.log import get_logger
from dsd_trt.train.scoring.adapter import Adapter

_FITTED_MASK = "words_eos"  # training counts these tokens

logger = get_logger(__name__)


def fitted(adapter: Adapter | None, manifest: Manifest, mode: Mode) -> Calibration | None:
    """The adapter's calibration of a mode; None where the bundle's score is not the one fitted to.

    Args:
        adapter: few-shot adapter of the bundle; None is the zero-shot score.
        manifest: description of the bundle's score, whatever its calibration.
        mode: mode of the score.
    """
    if adapter is None or any(_differences(adapter, manifest, mode)):
        return None
    return adapter.calibration_of(mode)


def calibrated(manifest: Manifest, adapter: Adapter | None) -> Manifest:
    """The manifest with the adapter's calibrations, and a logged warning where there are none."""
    manifest = replace(manifest, calibration=fitted(adapter, manifest, "pair"))
    if manifest.matrix is not None:
        matrix = replace(manifest.matrix, calibration=fitted(adapter, manifest, "matrix"))
        manifest = replace(manifest, matrix=matrix)
    for mode in _modes(manifest):
        if manifest.calibration_of(mode) is None:
            _warn(manifest, mode, why_unfitted(adapter, manifest, mode))
    return manifest


def why_unfitted(adapter: Adapter | None, manifest: Manifest, mode: Mode) -> str:
    """Why the bundle's score in a mode has no calibration, as a clause."""
    if adapter is None:
        return "there is no few-shot adapter"
    if adapter.levels and adapter.mode not in (mode, "both"):
        return f"the adapter was trained for {adapter.mode} mode alone"
    if adapter.calibration_of(mode) is None:
        return "the adapter has none"
    differences = ", and to ".join(_differences(adapter, manifest, mode))
    return f"the adapter's were fitted to {differences}"


def without_shifted(manifest: Manifest) -> Manifest:
    """The manifest without calibrations whose probabilities rounding would move too far.

    The export measured the largest difference of a score; see `largest_shift`.

    Args:
        manifest: manifest with calibrations fitted in FP32, and with the export's parity figures.
    """
    for mode in _modes(manifest):
        if (calibration := manifest.calibration_of(mode)) is None:
            continue
        difference = _largest_difference(manifest.parity, mode)
        if (shift := largest_shift(calibration, difference)) <= MOST_SHIFT:
            continue
        _warn(
            manifest,
            mode,
            f"{manifest.precision} moves scores by up to {difference:.2g}, and so the adapter's "
            f"probabilities, fitted in fp32, by up to {shift:.2f}",
        )
        if mode == "pair":
            manifest = replace(manifest, calibration=None)
        elif manifest.matrix is not None:
            manifest = replace(manifest, matrix=replace(manifest.matrix, calibration=None))
    return manifest


def _largest_difference(parity: Mapping[str, Any], mode: Mode) -> float:
    """Largest difference of a mode's scores from the reference's; 0 where none was measured."""
    figures = [run["score" if mode == "pair" else "matrix"] for run in parity.get("runs", ())]
    return max((float(it["max_difference"]) for it in figures if it), default=0.0)


def _differences(adapter: Adapter, manifest: Manifest, mode: Mode) -> Iterator[str]:
    """What the adapter's (a, b) were fitted to, and the bundle's score is not."""
    method, levels, resize = manifest.method, manifest.method.noise_levels, adapter.resize
    pool = manifest.matrix.query_pool if mode == "matrix" and manifest.matrix else 1
    if set(levels.fractions) != set(adapter.levels):
        yield f"the levels {_listed(adapter.levels)}, not {_listed(levels.fractions)}"
    if levels.seed != (seed := adapter.training.get("noise_seed", 0)):
        yield f"the noise of seed {seed}, not {levels.seed}"
    if len(method.score_layers) != adapter.layers:
        yield f"all {counted(adapter.layers, 'layer')}, not {len(method.score_layers)}"
    if method.score != adapter.score:
        yield f'the score "{adapter.score}", not "{method.score}"'
    if method.token_mask != _FITTED_MASK:
        yield f"the tokens {_FITTED_MASK}, not {method.token_mask}"
    if manifest.preprocessing.resize != resize:
        yield f"images resized by {resize}, not {manifest.preprocessing.resize}"
    if pool > 1:
        yield f"every query, not means over squares of {pool} x {pool}"


def _warn(manifest: Manifest, mode: Mode, why: str) -> None:
    which = f" --mode {mode}" if manifest.matrix is not None else ""
    logger.warning(
        "the bundle gives scores without match probabilities%s: %s. To have them, fit them to "
        "labelled pairs: dsd-trt calibrate BUNDLE%s --data TABLE; or train an adapter for this "
        "score: dsd-trt train",
        f" in {mode} mode" if manifest.matrix is not None else "",
        why,
        which,
    )


def _modes(manifest: Manifest) -> tuple[Mode, ...]:
    return ("pair",) if manifest.matrix is None else ("pair", "matrix")


def _listed(levels: tuple[float, ...]) -> str:
    return ", ".join(f"{s:g}" for s in levels)
