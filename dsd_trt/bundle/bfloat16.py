"""What a bundle says of BF16: with what probability it changes the winner."""

from __future__ import annotations

import re

from dsd_trt.bundle.card_rows import with_rows
from dsd_trt.bundle.manifest import Bfloat16, Manifest

MOST_CHANGES = 0.005
"""Largest probability of another winner that BF16 is used with."""

_CARD_ROWS = re.compile(
    r"^\| BF16(?:, \w+ mode)? \| (?:changes the winner|not compared).*\n", re.MULTILINE
)


def as_percent(share: float) -> str:
    """A share in percent, with two digits: 0.0013 is "0.13 %"."""
    return f"{100 * share:.2g} %"


def in_words(measured: Bfloat16) -> str:
    """What was measured, for people."""
    refused = "" if measured.winner_changes <= MOST_CHANGES else ", and is refused"
    return (
        f"changes the winner with probability {as_percent(measured.winner_changes)}{refused}; "
        f"scores differ by up to {measured.difference:.2g} ({measured.engine})"
    )


def bfloat16_rows(manifest: Manifest) -> str:
    """Rows of a model card's table about BF16, one for each mode that was measured."""
    measured = manifest.bfloat16 or {}
    if not measured:
        return "| BF16 | not compared with FP32 at export; `openvino-bf16` does it at first use |\n"
    return "".join(
        f"| BF16{f', {mode} mode' if manifest.matrix is not None else ''} | {in_words(it)} |\n"
        for mode, it in measured.items()
    )


def with_bfloat16_rows(card: str, manifest: Manifest) -> str:
    """A model card whose rows about BF16 are those of the manifest.

    A card without such rows, of an older bundle, stays as it is.
    """
    return with_rows(card, _CARD_ROWS, bfloat16_rows(manifest))
