"""Where a bundle's scores have a match probability, and what gives one where they have none.

The probability sigmoid(a f + b) holds for the score that (a, b) were fitted to: one mode, averaged
over all of the bundle's noise levels, in a precision that rounds little. Any other score has none.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from dsd_trt.bundle.card_rows import with_rows
from dsd_trt.bundle.manifest import Calibration, Manifest
from dsd_trt.bundle.method import Mode

MOST_SHIFT = 0.05
"""Largest shift of a probability that rounding may cause; above it, a fit in FP32 is another's."""

_CARD_ROWS = re.compile(r"^\| match probability.*\n", re.MULTILINE)


@dataclass(frozen=True)
class Rounding:
    """What an engine's rounding does to scores.

    Attributes:
        precision: name of the precision, for messages, such as "BF16".
        difference: largest difference of a score from FP32's, as measured.
        reference: name of the engine that computes the same in FP32.
    """

    precision: str
    difference: float
    reference: str

    def moves(self, calibration: Calibration) -> bool:
        """Whether it may move a probability by more than `MOST_SHIFT`."""
        return not largest_shift(calibration, self.difference) <= MOST_SHIFT


def largest_shift(calibration: Calibration, difference: float) -> float:
    """Largest shift of a probability whose score differs by at most `difference`.

    The slope of sigmoid(a f + b) is at most |a| / 4.
    """
    return min(abs(calibration.a) / 4 * difference, 1.0)


def calibration_at(
    manifest: Manifest,
    mode: Mode,
    levels: Sequence[float] | None = None,
    rounding: Rounding | None = None,
) -> Calibration | None:
    """The calibration of a score; None where none was fitted to it.

    Args:
        manifest: manifest of the bundle.
        mode: mode of the score.
        levels: noise levels that the score is averaged over; None is all of the bundle's.
        rounding: rounding of the engine; None if it computes as the fit did.
    """
    if levels is not None and set(levels) != set(manifest.method.noise_levels.fractions):
        return None
    found = manifest.calibration_of(mode)
    return None if found and rounding and rounding.moves(found) else found


def why_no_probability(
    manifest: Manifest,
    mode: Mode,
    levels: Sequence[float] | None = None,
    bundle: str = "BUNDLE",
    rounding: Rounding | None = None,
) -> str:
    """Message that a score has no match probability, with the remedy; "" if it has one.

    Args:
        manifest: manifest of the bundle.
        mode: mode of the score.
        levels: noise levels that the score is averaged over; None is all of the bundle's.
        bundle: folder of the bundle, for the command.
        rounding: rounding of the engine; None if it computes as the fit did.
    """
    if calibration_at(manifest, mode, levels, rounding) is not None:
        return ""
    found = manifest.calibration_of(mode)
    if found is not None and rounding is not None and rounding.moves(found):
        return (
            f"no match probabilities in {rounding.precision}: it moves scores by up to "
            f"{rounding.difference:.2g}, and so probabilities, fitted in FP32, by up to "
            f"{largest_shift(found, rounding.difference):.2f}. Scores rank without them; for "
            f"probabilities, score in FP32: --engine {rounding.reference}"
        )
    if found is not None and levels is not None:
        fitted = _listed(manifest.method.noise_levels.fractions)
        return (
            f"no match probabilities at the noise levels {_listed(levels)} alone: they were fitted "
            f"to the mean over {fitted}. Score at all of these, or fit some to a bundle of fewer "
            "levels: dsd-trt export --levels, then dsd-trt calibrate"
        )
    which = f" --mode {mode}" if manifest.matrix is not None else ""
    where = f" in {mode} mode" if manifest.matrix is not None else ""
    return (
        f"no match probabilities{where}: none were fitted to this bundle's scores, which rank "
        "without them. Fit them to labelled pairs: "
        f"dsd-trt calibrate {shlex.quote(bundle)}{which} --data TABLE"
    )


def card_rows(manifest: Manifest) -> str:
    """Rows of a model card's table about match probabilities, one for each mode."""
    modes: list[Mode] = ["pair"] if manifest.matrix is None else ["pair", "matrix"]
    return "".join(
        f"| match probability{f', {mode} mode' if len(modes) > 1 else ''} "
        f"| {_in_words(manifest.calibration_of(mode))} |\n"
        for mode in modes
    )


def with_card_rows(card: str, manifest: Manifest) -> str:
    """A model card whose rows about match probabilities are those of the manifest.

    A card without such rows, of an older bundle, stays as it is.
    """
    return with_rows(card, _CARD_ROWS, card_rows(manifest))


def _in_words(calibration: Calibration | None) -> str:
    if calibration is None:
        return "none: not fitted; `dsd-trt calibrate` fits one to labelled pairs"
    return f"sigmoid(a f + b), a = {calibration.a:.6g}, b = {calibration.b:.6g}"


def _listed(levels: Sequence[float]) -> str:
    return ", ".join(f"{s:g}" for s in levels)
