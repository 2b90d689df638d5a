"""Where a bundle's scores have a match probability, and what gives one where they have none.

The probability sigmoid(a f + b) holds for the score that (a, b) were fitted to: one mode, averaged
over all of the bundle's noise levels. Any other score has none.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from dsd_trt.bundle.manifest import Calibration, Manifest, Mode

_CARD_ROWS = re.compile(r"^\| match probability.*\n", re.MULTILINE)


def calibration_at(
    manifest: Manifest, mode: Mode, levels: Sequence[float] | None = None
) -> Calibration | None:
    """The calibration of a score; None where none was fitted to it.

    Args:
        manifest: manifest of the bundle.
        mode: mode of the score.
        levels: noise levels that the score is averaged over; None is all of the bundle's.
    """
    if levels is not None and set(levels) != set(manifest.method.noise_levels.fractions):
        return None
    return manifest.calibration_of(mode)


def why_no_probability(
    manifest: Manifest,
    mode: Mode,
    levels: Sequence[float] | None = None,
    bundle: str = "BUNDLE",
) -> str:
    """Message that a score has no match probability, with the remedy; "" if it has one.

    Args:
        manifest: manifest of the bundle.
        mode: mode of the score.
        levels: noise levels that the score is averaged over; None is all of the bundle's.
        bundle: folder of the bundle, for the command.
    """
    if calibration_at(manifest, mode, levels) is not None:
        return ""
    if manifest.calibration_of(mode) is not None and levels is not None:
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
    rows = _CARD_ROWS.findall(card)
    if not rows:
        return card
    before, _, after = card.partition(rows[0])
    return before + card_rows(manifest) + _CARD_ROWS.sub("", after)


def _in_words(calibration: Calibration | None) -> str:
    if calibration is None:
        return "none: not fitted; `dsd-trt calibrate` fits one to labelled pairs"
    return f"sigmoid(a f + b), a = {calibration.a:.6g}, b = {calibration.b:.6g}"


def _listed(levels: Sequence[float]) -> str:
    return ", ".join(f"{s:g}" for s in levels)
