"""Provenance of results: what made them."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsd_trt.image.files import printable

if TYPE_CHECKING:
    from dsd_trt.scorer import Scorer


def versions() -> str:
    """Versions of this package, of Python, and of the packages that read images and texts."""
    from importlib.metadata import version  # takes 0.03 s

    packages = ("numpy", "pillow", "tokenizers")
    found = [f"dsd-trt {version('dsd-trt')}", f"Python {platform.python_version()}"]
    return ", ".join([*found, *(f"{it} {version(it)}" for it in packages)])


def scoring_facts(scorer: Scorer, levels: Sequence[float] | None = None) -> dict[str, str]:
    """What scores depend on: the same for every run of the same command on a machine.

    Args:
        scorer: scorer that computes the scores.
        levels: noise levels that are averaged over; None is all of the bundle's.
    """
    used = levels or scorer.manifest.method.noise_levels.fractions
    return {
        "bundle": printable(scorer.bundle.folder.name),
        "bundle sha256": scorer.manifest.digest,
        "mode": scorer.mode,
        "engine": str(scorer.engine),
        "noise levels": ", ".join(f"{it:g}" for it in used),
        "versions": versions(),
    }


def run_facts() -> dict[str, str]:
    """What is of this run alone: the command, and when it ended."""
    now = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds")
    command = shlex.join(["dsd-trt", *sys.argv[1:]])
    return {"command": printable(command), "date": now.replace("+00:00", " UTC")}
