"""What may be chosen of score and prompts, checked before PyTorch is imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dsd_trt.bundle.method import HeadMode, ScoreKind
from dsd_trt.errors import InputError, ModelError

DEFAULT_LEVELS = (0.2, 0.4, 0.6, 0.8)

Loss = Literal["bce", "softmax", "softmax+bce"]
"""Training loss, see `FewShotSettings`."""

_SELECTION = re.compile(r"all|last:0*[1-9]\d*|\s*\d+\s*(,\s*\d+\s*)*", re.ASCII)


@dataclass(frozen=True)
class PromptConfig:
    """Sizes of the prompts and their mapping network.

    Attributes:
        rank: rank of each static prompt P = up @ down; None makes P a full matrix.
        hidden: width of the mapping network's hidden layer.
        latent_channels: number of channels of the latent z, the mapping network's input.
    """

    rank: int | None = 4
    hidden: int = 32
    latent_channels: int = 4


def require_levels(fractions: Sequence[float]) -> None:
    """Refuse noise levels that no schedule has.

    Raises:
        ValueError: there are no levels, one lies outside (0, 1), or two are the same.
    """
    if not fractions or any(not 0 < s < 1 for s in fractions) or len({*fractions}) < len(fractions):
        given = ", ".join(map(str, fractions)) or "none"
        raise ValueError(f"noise levels must be distinct and lie between 0 and 1, got {given}")


def require_matrix(score: ScoreKind, head_mode: HeadMode, advice: str) -> None:
    """Refuse scores and head weights that matrix mode does not have.

    Args:
        score: kind of score that the mode is to compute.
        head_mode: source of the head weights; "uniform" without an adapter.
        advice: what to do instead, the end of the message.

    Raises:
        InputError: matrix mode cannot compute the score.
    """
    if score != "attention" or head_mode == "dynamic":
        raise InputError(
            'matrix mode has the score "attention" and head weights that are not dynamic, here '
            f'they are "{score}" and "{head_mode}": {advice}'
        )


def require_score(trained: ScoreKind, score: ScoreKind, advice: str) -> None:
    """Refuse a score other than the one an adapter was trained for.

    Args:
        trained: score of the adapter.
        score: score that is asked for.
        advice: what to do instead, the end of the message.

    Raises:
        ModelError: the scores differ; the message names both.
    """
    # An imported adapter changes weights alone, so that it serves any score.
    if trained not in (score, "released"):
        raise ModelError(
            f'the adapter was trained for the score "{trained}", not "{score}": {advice}'
        )


def require_selection(selection: str | Sequence[int]) -> None:
    """Refuse a selection of layers that is malformed, whatever the U-Net.

    Raises:
        ValueError: it is neither "all" nor "last:N" nor indices.
    """
    if isinstance(selection, str) and not _SELECTION.fullmatch(selection):
        raise ValueError(
            f'no cross-attention layers {selection!r}: choose "all", "last:N" with N above 0, or '
            "indices such as 0,3,5"
        )


def select_layers(selection: str | Sequence[int], count: int) -> tuple[int, ...]:
    """Turn a selection of layers into ascending indices without duplicates.

    Args:
        selection: "all", "last:N", or indices in order of execution, as a sequence or "0,3,5".
        count: number of cross-attention layers in the U-Net.

    Raises:
        ValueError: the selection is malformed, empty, or names a layer the U-Net does not have.
    """
    allowed = f'choose "all", "last:N" with N up to {count}, or indices from 0 to {count - 1}'
    try:
        if selection == "all":
            layers = list(range(count))
        elif isinstance(selection, str) and selection.startswith("last:"):
            last = int(selection.removeprefix("last:"))
            layers = list(range(count - last, count)) if last > 0 else []
        elif isinstance(selection, str):
            layers = [int(index) for index in selection.split(",")]
        else:
            layers = [int(index) for index in selection]
    except ValueError:
        layers = []
    if not layers or min(layers) < 0 or max(layers) >= count:
        raise ValueError(f"no cross-attention layers {selection!r}: {allowed}")
    return tuple(sorted(set(layers)))
